"""Settings that every service has, read from the environment; each has a default that works on one machine."""

from typing import Literal

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from textmill.bus import KafkaBus
from textmill.store import S3Store


class StoreSettings(BaseSettings):
    """Where objects lie: any S3 server."""

    model_config = SettingsConfigDict(env_prefix="TEXTMILL_STORE_")

    url: str = "http://127.0.0.1:8333"
    access_key: str = "textmill"
    secret_key: SecretStr = SecretStr("textmill-local")
    bucket: str = "textmill"
    region: str = "us-east-1"

    def open(self) -> S3Store:
        return S3Store(self.url, self.access_key, self.secret_key.get_secret_value(), self.bucket, self.region)


class BusSettings(BaseSettings):
    """Where the doorbell hangs: any Kafka."""

    model_config = SettingsConfigDict(env_prefix="TEXTMILL_BUS_")

    servers: str = "127.0.0.1:9092"
    session_timeout_s: float = 6.0
    partitions: int = 8

    def open(self) -> KafkaBus:
        return KafkaBus(self.servers, self.session_timeout_s, self.partitions)


class ServiceSettings(BaseSettings):
    """A service subclasses this with its own prefix.

    ``role`` splits the API from the worker where they scale apart. ``token`` guards the control API; empty means open,
    which is for one machine only.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    role: Literal["all", "api", "worker"] = "all"
    token: SecretStr = SecretStr("")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    grace_s: float = 20.0
    recover_every_s: float = 5.0
    lease_ttl_s: float = 15.0
    max_attempts: int = 5
