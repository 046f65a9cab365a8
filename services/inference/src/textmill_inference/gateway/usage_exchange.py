"""Quotas over several gateways, and over restarts: each tells the others through the store what its keys have used.

Each writes one object and reads the others' at every tick. So between ticks each may let in what the limit left at the
last one: with n gateways the excess is at most n - 1 times what one lets in in a tick. What a gateway that has ended
had counted still counts until it is old; what it had reserved no longer does.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from textmill.contracts.base import new_id
from textmill.contracts.keys import GatewayUse, KeyUse
from textmill.errors import DependencyDown, NotFound
from textmill.store import ObjectStore
from textmill_inference.gateway.admission import Admission
from textmill_inference.gateway.windows import steady_time

log = logging.getLogger(__name__)
_PREFIX = "keys/usage/"
_SILENT_S = 15.0
"""A gateway that has told nothing for so long holds no reservations any more."""
_OLD_S = 90_000.0
"""Past the longest window: of no use to anybody."""


@dataclass
class UsageExchange:
    """``clock`` is Unix time; those of all gateways must agree within seconds."""

    store: ObjectStore
    admission: Admission
    clock: Callable[[], float] = steady_time
    gateway_id: str = field(default_factory=lambda: new_id("gw"))

    async def tick(self) -> None:
        """Tell and hear. Never raises for a store that is down: then each gateway counts for itself."""
        keys = {key_id: account.told() for key_id, account in self.admission.accounts.items() if account.meters}
        mine = GatewayUse(gateway_id=self.gateway_id, told_at=self.clock(), keys=keys)
        try:
            others = await asyncio.to_thread(self._exchange, mine)
        except DependencyDown as exc:
            log.warning("quotas can't be compared with other gateways'", extra={"error": str(exc)})
            return
        heard: defaultdict[str, list[KeyUse]] = defaultdict(list)
        for other in others:
            for key_id, use in other.keys.items():
                heard[key_id].append(use)
        self.admission.hear(heard)

    def _exchange(self, mine: GatewayUse) -> Sequence[GatewayUse]:
        own = f"{_PREFIX}{self.gateway_id}.json"
        if mine.keys:
            self.store.put(own, mine.to_json())
        found = [self._read(info.key) for info in self.store.list(_PREFIX) if info.key != own]
        return [use for use in found if use is not None]

    def _read(self, key: str) -> GatewayUse | None:
        try:
            use = GatewayUse.model_validate_json(self.store.get(key))
        except NotFound:
            return None
        except ValidationError as exc:
            log.error("another gateway's use can't be read", extra={"object": key, "error": exc.title})
            return None
        silent_s = self.clock() - use.told_at
        if silent_s > _OLD_S:
            self.store.delete(key)
            return None
        return _without_reservations(use) if silent_s > _SILENT_S else use


def _without_reservations(use: GatewayUse) -> GatewayUse:
    keys = {
        key_id: KeyUse(meters={q: meter.model_copy(update={"reserved": 0}) for q, meter in one.meters.items()})
        for key_id, one in use.keys.items()
    }
    return use.model_copy(update={"keys": keys})
