"""Owners read the built-in ways over HTTP, to write their own beside them."""

from fastapi import FastAPI
from fastapi.testclient import TestClient

from textmill_synth.asking.api import ways_router
from textmill_synth.asking.ways import built_in_ways


def test_ways_are_listed_by_language_and_axis() -> None:
    app = FastAPI()
    app.include_router(ways_router())
    client = TestClient(app)
    everything = client.get("/v1/ways").json()["items"]
    assert {way["language"] for way in everything} == {"en", "zh"}
    assert {way["use"] for way in everything} == {"ask", "held_out", "template", "opening"}
    indirect = client.get("/v1/ways", params={"language": "zh", "axis": "indirect"}).json()["items"]
    assert [way["text"] for way in indirect] == [t.text for t in built_in_ways("zh").templates if t.axis == "indirect"]
    assert client.get("/v1/ways", params={"axis": "shouted"}).status_code == 422
