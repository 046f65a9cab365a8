"""The request log's metrics. Nothing is lost without being counted here."""

from prometheus_client import Counter, Gauge

LOGGED = Counter("textmill_traffic_exchanges_logged_total", "Exchanges written to the request log")
DROPPED = Counter(
    "textmill_traffic_exchanges_dropped_total", "Exchanges that were to be logged and weren't, by reason", ["reason"]
)
REDACTED = Counter("textmill_traffic_redactions_total", "Pieces of personal data taken out, by kind", ["kind"])
WAITING_BYTES = Gauge("textmill_traffic_waiting_bytes", "Bytes of exchanges that aren't in the store yet")
SEGMENTS_FAILED = Counter("textmill_traffic_segment_writes_failed_total", "Writes the store didn't take; tried again")
SEGMENTS_SWEPT = Counter("textmill_traffic_segments_swept_total", "Segments past their retention, deleted")
FEEDBACK = Counter("textmill_traffic_feedback_total", "Feedback taken, by rating", ["rating"])
