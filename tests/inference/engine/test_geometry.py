import json

import pytest

from textmill_inference.engine.geometry import same_geometry

FILES = {
    "config.json": json.dumps(
        {"hidden_size": 8, "dtype": "bfloat16", "_name_or_path": "a", "transformers_version": "1"}
    ),
    "tokenizer.json": "{}",
    "chat_template.jinja": "x",
    "generation_config.json": json.dumps({"eos_token_id": 2, "transformers_version": "1"}),
}


def folder(path, **changed):
    path.mkdir()
    for name, text in {**FILES, **changed}.items():
        (path / name).write_text(text)
    return path


def test_names_versions_and_stored_data_type_do_not_matter(tmp_path):
    config = {"hidden_size": 8, "dtype": "float32", "_name_or_path": "b", "transformers_version": "2"}
    generation = {"eos_token_id": 2, "transformers_version": "2"}
    other = {"config.json": json.dumps(config), "generation_config.json": json.dumps(generation)}
    assert same_geometry(folder(tmp_path / "a"), folder(tmp_path / "b", **other))


@pytest.mark.parametrize(
    "changed",
    [
        {"config.json": json.dumps({"hidden_size": 9})},
        {"tokenizer.json": "{ }"},
        {"chat_template.jinja": "y"},
        {"generation_config.json": json.dumps({"eos_token_id": 3})},
        {"special_tokens_map.json": "{}"},
    ],
)
def test_what_the_engine_read_at_its_start_has_to_be_the_same(tmp_path, changed):
    assert not same_geometry(folder(tmp_path / "a"), folder(tmp_path / "b", **changed))
