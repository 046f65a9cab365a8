"""Settings of the ingest service, from ``TEXTMILL_INGEST_*``."""

import ipaddress

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from textmill.settings import ServiceSettings
from textmill_ingest.crawl import Politeness


class IngestSettings(ServiceSettings):
    """``uploads_at_once`` bounds memory: each costs about 100 MB; more uploads wait. Crawl times are in seconds.

    ``crawl_allow_networks`` opens networks to the crawler that it refuses otherwise, such as ``["10.0.0.0/8"]`` for
    pages inside the house.
    """

    model_config = SettingsConfigDict(env_prefix="TEXTMILL_INGEST_")

    port: int = 8101
    uploads_at_once: int = Field(default=2, ge=1, le=64)
    crawl_delay_s: float = Field(default=1.0, ge=0, le=60)
    crawl_timeout_s: float = Field(default=30.0, gt=0, le=600)
    crawl_max_page_bytes: int = Field(default=8 * 1024 * 1024, ge=1, le=8 * 1024 * 1024)
    crawl_allow_networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()

    def politeness(self) -> Politeness:
        return Politeness(
            delay_s=self.crawl_delay_s,
            timeout_s=self.crawl_timeout_s,
            max_page_bytes=self.crawl_max_page_bytes,
            allow_networks=self.crawl_allow_networks,
        )
