"""The table of methods, with commands that write what the real ones would, and train nothing."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import cells, methods
from spec.errors import BadInput
from spec.storage import open_store
from spec.storage.markers import Marker, write_marker
from tests.runs import add_samples

CONFIGS = {
    "steps": {
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "draft_vocab_size": 4096,
        "vocab_size": 49152,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 14, 26]},
    },
    "block_size": {
        "architectures": ["DSparkDraftModel"],
        "num_hidden_layers": 1,
        "block_size": 7,
        "dflash_config": {"target_layer_ids": [1, 8], "mask_token_id": 16},
        "markov_rank": 64,
    },
}
PART = {"accept_length": 1.5, "acceptance_by_position": [0.4, 0.1, 0.0], "tokens": 90, "forwards": 60, "histogram": []}


class Commands:
    """What `cells.call` is told, and the files that each command leaves; one that `fails_at` ends the table."""

    def __init__(self, fails_at: str = "nowhere"):
        self.told: list[list[str]] = []
        self.fails_at = fails_at

    def __call__(self, *command):
        words = [str(word) for word in command]
        self.told.append(words)
        if any(self.fails_at in word for word in words):
            raise SystemExit(75)
        name = words[0] if words[0] == "tune" else Path(words[1]).stem
        getattr(self, name)(words)

    def tune(self, words):
        own = Path(next(word for word in words if word.startswith("run_dir=")).removeprefix("run_dir="))
        self.config = next(config for name, config in CONFIGS.items() if any(w.startswith(f"{name}=") for w in words))
        step = {"loss": 1.0, "seconds": 5.0, "cpu_seconds": 2.0, "accuracy_by_position": [0.5]}
        rows = [{"step": 1, **step}, {"step": 2, **step}, {"step": 2, "held_out": {"loss": 2.0}}]
        (own / "checkpoints").mkdir()
        (own / "checkpoints/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def extract_draft_model(self, words):
        own = open_store(Path(words[words.index("--checkpoint_dir") + 1]).parent)
        write_marker(own.at("draft"), "draft.json", Marker.of("extract", {}, {}, facts={"config": self.config}))

    def evaluate_draft(self, words):
        report = Path(words[2]) / "report"
        report.mkdir(exist_ok=True)
        (report / "offline.json").write_text(json.dumps(PART))
        if "--base-url" in words:
            (report / "report.json").write_text(json.dumps({"facts": {"speculative": PART, "agreement": {}}}))

    def tune_server(self, words):
        speeds = {name: {"tokens_per_s": [pace, pace, pace]} for name, pace in (("plain", 10.0), ("drafted", 12.0))}
        measured = {**speeds, "speed_up": [1.2, 1.1, 1.3], "costs": [1.0, 1.0, 1.0], "drafts": 3}
        (Path(words[2]) / "report/sweep.json").write_text(json.dumps({"facts": {"measured": [measured]}}))

    def names(self):
        return [words[0] if words[0] == "tune" else Path(words[1]).stem for words in self.told]


@pytest.fixture
def run(tmp_path):
    store = open_store(tmp_path / "run")
    add_samples(store)
    store.write("run.json", b"{}")
    return tmp_path / "run"


@pytest.fixture
def commands(monkeypatch):
    """The commands' stand-ins, and a server's."""

    @contextmanager
    def server(target, draft, **settings):
        server.drafts.append(settings["environment"]["DRAFT_STEPS"])
        yield "http://127.0.0.1:1"

    server.drafts = []
    commands = Commands()
    commands.server = server
    monkeypatch.setattr(cells, "call", lambda *command: commands(*command))
    monkeypatch.setattr(cells, "sglang_on_cpu", server)
    return commands


def table(run, *, method=("eagle3",), drafts="3", **more):
    given = {"tried": None, "only": None, "speed": False, "processes": 2, "prompts": 4, "max_new_tokens": 8}
    output = run.with_name("table")
    methods.main(run, run / "target", list(method), drafts, **(given | more), output=output)
    return json.loads((output / "methods.json").read_text()), (output / "methods.md").read_text()


def test_each_method_is_trained_for_and_served_at_each_number_of_drafts(run, commands):
    rows, text = table(run, method=["dspark", "eagle3"], drafts="7,3")
    assert [(row["drafts"], row["method"]) for row in rows] == [
        (3, "eagle3"),
        (3, "dspark"),
        (7, "eagle3"),
        (7, "dspark"),
    ]
    trained = [[word for word in words if word.startswith(("steps=", "block_size="))] for words in commands.told]
    assert [words for words in trained if words] == [["block_size=3"], ["steps=3"], ["block_size=7"], ["steps=7"]]
    assert commands.server.drafts == ["3", "3", "7", "7"]
    asked = [words[words.index("--drafts") + 1] for words in commands.told if "--drafts" in words]
    assert asked == ["3"] * 4 + ["7"] * 4
    assert "| 3 | EAGLE-3 | 1.500, 1.500 | 40% 10% 0% | 2 | 4 (10) | 180 (3) | not yet |" in text
    assert "| 7 | DSpark | 1.500, 1.500 | 40% 10% 0% | 2 | 4 (10) | 60 (1) | not yet |" in text


def test_dflash_reads_one_row_more_than_it_drafts():
    assert cells.Cell("dflash", 3).settings == ("block_size=4",)


def test_a_cell_with_other_settings_has_a_folder_that_can_be_a_settings_value():
    assert cells.Cell("eagle3", 3, ("initialise=./a/b", "epochs=2")).name == "eagle3-3-initialise_._a_b-epochs_2"


def test_a_table_that_was_killed_goes_on_with_what_is_missing(run, commands):
    commands.fails_at = "--base-url"
    with pytest.raises(SystemExit):
        table(run)
    commands.told, commands.fails_at = [], "nowhere"
    table(run)
    assert commands.names() == ["evaluate_draft"] and "--base-url" in commands.told[0]
    commands.told = []
    table(run)
    assert commands.told == []


def test_a_training_that_was_killed_has_no_figures_yet(run, commands):
    commands.fails_at = "extract"
    with pytest.raises(SystemExit):
        table(run)
    assert not (run.with_name("table") / "eagle3-3/cell.json").exists()


def test_speed_is_measured_alone_where_all_else_is_there(run, commands):
    _, before = table(run)
    commands.told = []
    rows, text = table(run, speed=True)
    assert commands.names() == ["tune_server"]
    assert "10.0, 12.0 (1.20 times)" in text and "not yet" in before
    assert rows[0]["speed"]["speed_up"] == [1.2, 1.1, 1.3]


def test_what_was_tried_has_a_cell_of_its_own_below_the_promised_ones(run, commands):
    table(run, tried=["epochs=2"], only="offline")
    rows, text = table(run)
    assert [row["tried"] for row in rows] == [[], ["epochs=2"]]
    assert "EAGLE-3, epochs=2 | 1.500, not yet" in text
    assert rows[1]["about"]["epochs"] == "2" and "epochs=2" in commands.told[0]


def test_other_samples_are_another_table(run, commands):
    table(run, only="train")
    store = open_store(run)
    marker = Marker.model_validate_json(store.read("samples/samples.json"))
    write_marker(store.at("samples"), "samples.json", marker.model_copy(update={"digest": "1"}))
    with pytest.raises(BadInput, match="inputs.samples"):
        table(run, only="train")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"method": ["medusa"]}, "medusa"),
        ({"drafts": "0"}, "--drafts 0"),
        ({"drafts": "three"}, "--drafts three"),
        ({"tried": ["epochs"]}, "--set epochs"),
        ({"method": ["dspark", "eagle3"], "tried": ["layers=2"]}, "layers"),  # of the second alone
        ({"tried": ["epochs=0"]}, "epochs"),
        ({"only": "served"}, "--only served"),
        ({"only": "offline", "speed": True}, "--speed"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_trained(run, commands, given, named):
    with pytest.raises(BadInput, match=named):
        table(run, **given)
    assert commands.told == [] and not run.with_name("table").exists()


def test_a_run_without_samples_is_refused(tmp_path, commands):
    with pytest.raises(BadInput, match="no samples"):
        table(tmp_path / "empty")
