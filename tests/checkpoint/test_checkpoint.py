"""Checkpoints are complete and self-contained, and no file can do harm or be misread."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from charlm import UsageError, load
from charlm.checkpoint.building import build_network
from charlm.checkpoint.loading import load_checkpoint
from charlm.checkpoint.paths import find_checkpoint
from charlm.models.network import Network
from charlm.models.state import map_state
from charlm.run import experiment as training
from tests.helpers import run_train

TEXT = "The quick brown Fox\njumps over the lazy dog: déjà vu!\n" * 50


@dataclass(frozen=True)
class Trained:
    """A run folder, the network in memory at the end of training, and the checksum of the text."""

    folder: Path
    network: Network
    sha256: str

    def file(self, name: str = "best") -> Path:
        return self.folder / "checkpoints" / f"{name}.ckpt"

    def content(self) -> dict[str, Any]:
        return torch.load(self.file(), weights_only=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    tmp = tmp_path_factory.mktemp("trained")
    corpus, run = tmp / "corpus.txt", tmp / "run"
    corpus.write_text(TEXT, encoding="utf-8")
    networks = []
    fit = training.fit

    def fit_and_keep(trainer: Any, model: Any, *others: Any) -> None:
        fit(trainer, model, *others)
        networks.append(copy.deepcopy(model.network).eval())

    arguments = ["data=text", f"data.path={corpus}", "data.lowercase=true", "data.bptt=16", "data.batch_size=4"]
    arguments += ["model.hidden_size=16", "optimizer.lr=0.01", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    arguments += ["logger=none", "callbacks=none", f"hydra.run.dir={run}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "fit", fit_and_keep)
        run_train(*arguments)
    sha256 = hashlib.sha256(corpus.read_bytes()).hexdigest()
    corpus.unlink()  # a checkpoint does not need the text
    return Trained(run, networks[0], sha256)


@pytest.fixture
def altered(trained: Trained, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Writes a copy of the checkpoint with changed content."""

    def write(change: Callable[[dict[str, Any]], object]) -> Path:
        content = trained.content()
        change(content)
        path = tmp_path / "altered.ckpt"
        torch.save(content, path)
        return path

    return write


Altered = Callable[[Callable[[dict[str, Any]], object]], Path]


def refusal(path: Path) -> str:
    """The sentence with which `path` is refused."""
    with pytest.raises(UsageError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400
    return message.replace(str(path), "FILE")


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a block that takes longer."""

    def interrupt(signum: int, frame: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def is_plain(value: object) -> bool:
    if type(value) is dict:
        return all(type(key) is str and is_plain(part) for key, part in value.items())
    if type(value) is list:
        return all(is_plain(part) for part in value)
    return value is None or type(value) in (str, int, float, bool)


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_checkpoint_opens_without_running_pickled_code(trained: Trained, name: str) -> None:
    content = torch.load(trained.file(name), weights_only=True)
    assert set(content["charlm"]) == {"format", "model", "vocab", "normalisation", "config", "corpus", "run"}
    assert is_plain(content["charlm"])
    weights = {key: value for key, value in content["state_dict"].items() if key.startswith("network.")}
    assert weights.keys() == {f"network.{key}" for key in trained.network.state_dict()}


def test_a_checkpoint_records_how_it_came_about(trained: Trained) -> None:
    entry = trained.content()["charlm"]
    assert entry["format"] == 2
    assert entry["vocab"] == {"chars": "".join(sorted(set(TEXT.lower()))), "pad": False, "unk": False}
    assert entry["normalisation"] == {"lowercase": True, "newlines": "unix", "unicode": "NFC"}
    assert entry["model"]["_target_"] == "charlm.models.recurrent.GRU"
    assert entry["config"]["model"] == entry["model"]
    assert entry["config"]["optimizer"]["lr"] == 0.01
    assert entry["corpus"]["sha256"] == trained.sha256
    assert entry["config"] == json.loads(json.dumps(entry["config"]))


@pytest.mark.parametrize("name", ["best", "last"])
def test_the_rebuilt_network_is_bitwise_the_trained_one(trained: Trained, name: str) -> None:
    opened = load_checkpoint(trained.file(name))
    assert not opened.network.training
    x_BT = torch.randint(len(opened.vocab), (3, 25), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, expected_state, _ = trained.network(x_BT)
        logits, state, _ = opened.network(x_BT)
        untrained = build_network(trained.content()["charlm"]["model"], len(opened.vocab))(x_BT).logits
    assert torch.equal(logits, expected)
    assert torch.equal(state, expected_state)
    assert not torch.allclose(logits, untrained)


def test_what_is_read_is_what_was_recorded(trained: Trained) -> None:
    opened, entry = load_checkpoint(str(trained.file())), trained.content()["charlm"]
    assert opened.vocab.to_dict() == entry["vocab"]
    assert (opened.normalisation, opened.config, opened.corpus) == (
        entry["normalisation"],
        entry["config"],
        entry["corpus"],
    )


def test_a_checkpoint_works_anywhere(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(trained.file()).generate("The ", 60, seed=1)
    moved = tmp_path / "else where" / "model.bin"
    moved.parent.mkdir()
    shutil.copy(trained.file(), moved)
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    monkeypatch.delenv("CHARLM_DATA_DIR", raising=False)
    assert load(Path("../else where/model.bin")).generate("The ", 60, seed=1) == expected


def test_reading_leaves_the_weights_trainable_and_on_the_cpu(trained: Trained) -> None:
    parameters = list(load_checkpoint(trained.file()).network.parameters())
    assert all(p.requires_grad and p.device.type == "cpu" for p in parameters)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "there is no checkpoint" in refusal(tmp_path / "missing.ckpt")


def test_a_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    assert "there is no checkpoint" in refusal(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(trained: Trained, tmp_path: Path, kept: float) -> None:
    data, path = trained.file().read_bytes(), tmp_path / "short.ckpt"
    path.write_bytes(data[: int(len(data) * kept)])
    assert "truncated" in refusal(path)


def test_a_file_that_lacks_its_last_byte_is_refused(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "short.ckpt"
    path.write_bytes(trained.file().read_bytes()[:-1])
    assert "truncated" in refusal(path)


@pytest.mark.parametrize("place", ["weights", "vocabulary", "start", "end"])
def test_a_flipped_bit_is_noticed(trained: Trained, tmp_path: Path, place: str) -> None:
    content, data = trained.content(), bytearray(trained.file().read_bytes())
    chars = content["charlm"]["vocab"]["chars"].encode()
    position = {
        "weights": data.index(content["state_dict"]["network.recurrent.weight_hh_l0"].numpy().tobytes()) + 43,
        "vocabulary": data.index(chars) + len(chars) - 1,  # turns the last letter, é, into è
        "start": 1,
        "end": len(data) - 20,
    }[place]
    data[position] ^= 1
    path = tmp_path / "flipped.ckpt"
    path.write_bytes(data)
    refusal(path)


@pytest.mark.parametrize("data", [b"", b"\0" * 5000, b"just text\n" * 500, b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other.ckpt"
    path.write_bytes(data)
    refusal(path)


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("form", ["pickle", "torch", "torch before 1.6", "beside the weights", "as a weight"])
def test_pickled_code_is_never_run(trained: Trained, tmp_path: Path, form: str) -> None:
    folder, path = tmp_path / "executed", tmp_path / "malicious.ckpt"
    malicious = Malicious(folder)
    content = trained.content()
    if form == "pickle":
        path.write_bytes(pickle.dumps(malicious))
    elif form == "torch":
        torch.save(malicious, path)
    elif form == "torch before 1.6":
        torch.save(malicious, path, _use_new_zipfile_serialization=False)
    elif form == "beside the weights":
        torch.save({**content, "extra": malicious}, path)
    else:
        content["state_dict"]["network.head.bias"] = malicious
        torch.save(content, path)
    refusal(path)
    assert not folder.exists()


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(3), {"charlm": 1}, {"charlm": {}}, "text"])
def test_files_of_torch_that_are_not_ours_are_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "theirs.ckpt"
    torch.save(content, path)
    refusal(path)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.nn.Linear",
        "charlm.run.experiment.run",
        "charlm.models.recurrent.torch.hub.load",
        "charlm.models.recurrent.nn.GRU",
        "charlm.models.recurrent.torch",
        "charlm.models.recurrent.State",
        "charlm.models.recurrent.Network",
        "charlm.models.recurrent._Recurrent",
        "charlm.models.recurrent.GRU.forward",
        "charlm.models.recurrent.__class__",
        "charlm.models.recurrent",
        "charlm.models.nonsense.GRU",
        "charlm.models.Network",
        "charlm.models..recurrent.GRU",
        "charlm.models.",
        "GRU",
        "",
        None,
        7,
        ["charlm.models.recurrent.GRU"],
    ],
)
def test_nothing_but_a_network_of_charlm_is_built(altered: Altered, target: object) -> None:
    path = altered(lambda content: content["charlm"]["model"].update(_target_=target))
    assert "is not a network in charlm.models" in refusal(path)


def test_a_class_of_charlm_that_is_no_network_is_not_built(altered: Altered, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = type("Helper", (), {"__module__": "charlm.models.recurrent"})
    monkeypatch.setattr("charlm.models.recurrent.Helper", helper, raising=False)
    path = altered(lambda content: content["charlm"]["model"].update(_target_="charlm.models.recurrent.Helper"))
    assert "is not a network in charlm.models" in refusal(path)


def test_a_missing_target_is_refused(altered: Altered) -> None:
    refusal(altered(lambda content: content["charlm"]["model"].pop("_target_")))


@pytest.mark.parametrize("argument", ["hidden_size", "dropout", "nonsense"])
def test_a_target_inside_an_argument_is_not_followed(altered: Altered, tmp_path: Path, argument: str) -> None:
    nested = {"_target_": "os.mkdir", "path": str(tmp_path / "executed"), "_args_": [str(tmp_path / "executed")]}
    message = refusal(altered(lambda content: content["charlm"]["model"].update({argument: nested})))
    assert argument in message
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("hidden_size", 17),
        ("hidden_size", "16"),
        ("hidden_size", -16),
        ("hidden_size", 0),
        ("hidden_size", 10**9),
        ("hidden_size", 10**30),
        ("embedding_size", 10**9),
        ("layers", 2),
        ("layers", 10**9),
        ("vocab_size", 5),
        ("nonsense", 1),
    ],
)
def test_sizes_that_disagree_with_the_weights_are_refused_at_once(altered: Altered, argument: str, value: Any) -> None:
    path = altered(lambda content: content["charlm"]["model"].update({argument: value}))
    with within(5):
        message = refusal(path)
    assert "cannot be used" in message
    assert "Exception raised from" not in message  # C++ stack frames


def test_sizes_that_disagree_with_the_weights_take_no_memory(altered: Altered) -> None:
    path = altered(lambda content: content["charlm"]["model"].update(hidden_size=4_500))  # 240 MB of weights
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    assert "cannot be used" in refusal(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("chars", ["abc", "", "ba", "aab", 7, None])
def test_a_vocabulary_that_does_not_fit_is_refused(altered: Altered, chars: object) -> None:
    refusal(altered(lambda content: content["charlm"]["vocab"].update(chars=chars)))


def test_a_vocabulary_with_another_symbol_is_refused(altered: Altered) -> None:
    refusal(altered(lambda content: content["charlm"]["vocab"].update(unk=True)))
    refusal(altered(lambda content: content["charlm"]["vocab"].update(pad=3)))


@pytest.mark.parametrize("key", ["model", "vocab", "normalisation", "config", "corpus", "format"])
def test_a_missing_part_is_named(altered: Altered, key: str) -> None:
    assert key in refusal(altered(lambda content: content["charlm"].pop(key)))
    assert key in refusal(altered(lambda content: content["charlm"].update({key: [1]})))


@pytest.mark.parametrize("normalisation", [{"nonsense": True}, {"lowercase": "no"}, {"lowercase": None}])
def test_a_normalisation_that_charlm_does_not_know_is_refused(altered: Altered, normalisation: Any) -> None:
    assert "normalisation" in refusal(altered(lambda content: content["charlm"].update(normalisation=normalisation)))


def test_missing_entries_are_named(altered: Altered) -> None:
    assert "'charlm'" in refusal(altered(lambda content: content.pop("charlm")))
    assert "state_dict" in refusal(altered(lambda content: content.pop("state_dict")))


def test_weights_that_lack_or_exceed_are_refused(altered: Altered) -> None:
    lacking = altered(lambda content: content["state_dict"].pop("network.head.bias"))
    assert "its file has no 'head.bias'" in refusal(lacking)
    more = {"network.head.extra": torch.zeros(1)}
    assert "fit together" in refusal(altered(lambda content: content["state_dict"].update(more)))
    text = {"network.head.bias": "text"}
    assert "'head.bias' is not a plain tensor" in refusal(altered(lambda content: content["state_dict"].update(text)))


def test_weights_that_share_their_memory_do_not_ask_for_more_than_the_file_has(altered: Altered) -> None:
    def share(content: dict[str, Any]) -> None:
        content["charlm"]["model"].update(layers=500, hidden_size=128)
        memory, vocab = torch.zeros(384 * 128), content["state_dict"]["network.embedding.weight"].shape[0]
        model = content["charlm"]["model"]
        with torch.device("meta"):
            network = build_network(model, vocab)
        for name, weight in network.state_dict().items():
            content["state_dict"][f"network.{name}"] = memory[: weight.numel()].view(weight.shape)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "its weights claim 198," in refusal(altered(share))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_more_tensors_than_a_network_may_have_are_refused(altered: Altered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charlm.checkpoint.loading.MOST_TENSORS", 5)
    assert "more than the 5 parameter tensors that are allowed" in refusal(altered(lambda content: None))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64])
def test_one_weight_of_another_type_is_named(altered: Altered, dtype: torch.dtype) -> None:
    def change(content: dict[str, Any]) -> None:
        content["state_dict"]["network.head.bias"] = content["state_dict"]["network.head.bias"].to(dtype)

    assert f"'head.bias' is of type {dtype}, not torch.float32" in refusal(altered(change))


def test_a_weight_whose_name_is_not_text_is_refused(altered: Altered) -> None:
    refusal(altered(lambda content: content["state_dict"].update({1: torch.zeros(1)})))


@pytest.mark.parametrize("number", [0, 1, 3, "2", None])
def test_another_format_is_refused_by_number(altered: Altered, number: object) -> None:
    message = refusal(altered(lambda content: content["charlm"].update(format=number)))
    assert f"has checkpoint format {number!r}, but this version of charlm reads 2: train the model again" in message


def test_weights_of_lightning_beside_the_networks_do_not_matter(altered: Altered, trained: Trained) -> None:
    path = altered(lambda content: content["state_dict"].update({"ema.head.bias": torch.zeros(1)}))
    opened = load_checkpoint(path)
    for key, value in opened.network.state_dict().items():
        assert torch.equal(value, trained.network.state_dict()[key])


def test_lightning_can_read_it_too(trained: Trained) -> None:
    assert trained.content()["pytorch-lightning_version"] == pl.__version__


def test_a_state_of_the_rebuilt_network_fits_it(trained: Trained) -> None:
    opened = load_checkpoint(trained.file())
    state = map_state(torch.clone, opened.network.initial_state(2))
    logits = opened.network(torch.zeros(2, 1, dtype=torch.int64), state).logits
    assert logits.shape == (2, 1, len(opened.vocab))


# Finding the checkpoint that the user means.


def put(folder: Path, *names: str, age: float = 0.0) -> None:
    """Create empty checkpoint files, last modified `age` seconds ago."""
    for name in names:
        path = folder / "checkpoints" / f"{name}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (time.time() - age,) * 2)


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_find_takes_a_file_at_its_word(cwd: Path) -> None:
    assert find_checkpoint("some/file.ckpt") == Path("some/file.ckpt")


def test_find_prefers_the_best_of_a_run_folder(cwd: Path) -> None:
    put(cwd / "one", "last")
    assert find_checkpoint("one") == Path("one/checkpoints/last.ckpt")
    put(cwd / "one", "best", age=100)
    assert find_checkpoint(cwd / "one") == cwd / "one/checkpoints/best.ckpt"
    assert find_checkpoint("one/checkpoints") == Path("one/checkpoints/best.ckpt")


def test_find_takes_the_newest_run(cwd: Path) -> None:
    put(cwd / "runs/b", "best", "last", age=300)
    put(cwd / "runs/a", "best", "last", age=200)
    assert find_checkpoint() == Path("runs/a/checkpoints/best.ckpt")
    put(cwd / "sweeps/x/0", "best", age=100)
    assert find_checkpoint() == Path("sweeps/x/0/checkpoints/best.ckpt")


def test_find_takes_the_best_of_the_newest_run_although_it_is_older(cwd: Path) -> None:
    put(cwd / "runs/a", "best", age=900)
    put(cwd / "runs/a", "last", age=100)
    put(cwd / "runs/b", "best", "last", age=500)
    assert find_checkpoint() == Path("runs/a/checkpoints/best.ckpt")


def test_find_without_a_run_says_what_to_do(cwd: Path) -> None:
    with pytest.raises(UsageError, match=r"runs/.*train\.py.*--checkpoint"):
        find_checkpoint()


def test_find_names_a_folder_without_checkpoints(cwd: Path) -> None:
    (cwd / "empty").mkdir()
    with pytest.raises(UsageError, match="empty is a folder without .*give a run folder"):
        find_checkpoint("empty")
