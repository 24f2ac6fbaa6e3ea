"""TrainConfig: what it takes from files and flags, and what it refuses."""

import dataclasses
import tomllib

import pytest

from hetkern.training import ClassifyConfig, TrainConfig, UserError


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('steps = 7\nlearning-rate = 1\nkernels = "torch"\n')
    config = TrainConfig.from_file(path, steps=9)
    assert (config.steps, config.learning_rate, config.kernels) == (9, 1.0, "torch")
    assert config.width == TrainConfig().width


def test_toml_round_trip_keeps_every_setting():
    config = TrainConfig(data='a "quoted" \\ path ä\x7f', prompt="\n\t", learning_rate=1e-5, seed=3)
    again = TrainConfig.from_values(tomllib.loads(config.to_toml()))
    assert again == config
    named = TrainConfig.from_values(
        tomllib.loads(dataclasses.replace(config, out="runs/this").to_toml())
    )
    assert named == config  # the folder is that run's own


def test_unknown_key_names_the_nearest_one(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("learning_rat = 0.1\n")
    with pytest.raises(UserError, match=r"run\.toml: unknown key 'learning_rat'; did you mean 'l"):
        TrainConfig.from_file(path)


def test_unknown_key_like_no_other_lists_the_known_ones():
    with pytest.raises(UserError, match="unknown key 'zzz'; known are: data, out, model"):
        TrainConfig.from_values({"zzz": 1})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", "many", "steps must be a whole number, got 'many'"),
        ("steps", 2.0, "steps must be a whole number, got 2.0"),
        ("steps", True, "steps must be a whole number, got True"),
        ("dropout", "0.1", "dropout must be a number, got '0.1'"),
        ("kernels", 3, "kernels must be a string, got 3"),
        ("steps", 0, "steps must be at least 1, got 0"),
        ("seed", 1 << 64, r"seed must be below 2\^63, got 18446744073709551616"),
        ("out", "", "out must not be empty"),
        ("data", "", "data must not be empty"),
        ("batch_size", -1, "batch_size must be at least 1, got -1"),
        ("learning_rate", float("nan"), "learning_rate must be at least 0, got nan"),
        ("learning_rate", float("inf"), "learning_rate must be finite, got inf"),
        ("dropout", 1.0, r"dropout must be in \[0, 1\), got 1.0"),
        ("heads", 3, "width 128 must be a multiple of heads 3"),
        ("tokens", "words", "tokens words lose blanks and capitals"),
        ("tokens", "letters", "tokens must be bytes, characters or bpe, got 'letters'"),
        ("model", "mlp", "model must be gpt, rnn, lstm or gru, got 'mlp'"),
        ("min_learning_rate", 1.0, "min_learning_rate 1.0 must not be above learning_rate"),
    ],
)
def test_bad_value_is_named_with_what_was_wanted(name, value, message):
    with pytest.raises(UserError, match=f"^{message}"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("kind", [TrainConfig, ClassifyConfig])
def test_a_vocabulary_of_bpe_that_cannot_hold_the_bytes_is_refused(kind):
    data = {"data": "reviews.tsv"}
    with pytest.raises(UserError, match=r"^vocabulary must be at least 258, got 257"):
        kind(**data, tokens="bpe", vocabulary=257)
    kind(**data, tokens="bpe", vocabulary=258)
    kind(**data, tokens="bytes", vocabulary=257)  # where it means nothing


def test_missing_config_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"^cannot read the config .*none\.toml: No such file"):
        TrainConfig.from_file(tmp_path / "none.toml")


def test_a_file_that_is_not_toml_is_one_sentence(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("steps: 3\n")
    with pytest.raises(UserError, match=r"run\.toml is not a TOML file"):
        TrainConfig.from_file(path)


def test_a_path_object_is_taken_for_data(tmp_path):
    assert TrainConfig(data=tmp_path).data == str(tmp_path)


def test_every_setting_has_a_help_text():
    assert all(len(f.metadata["help"]) > 10 for f in dataclasses.fields(TrainConfig))
