"""A user's own texts from the command line: what is shown, chosen, recorded and resumed."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import charlm
from charlm.checkpoint.format import KEY
from charlm.checkpoint.safe_loading import read_safely
from tests.helpers import run_train

TINY = ("logger=none", "model.embedding_size=8", "model.hidden_size=16", "trainer.accelerator=cpu", "callbacks=none")


@pytest.fixture
def notes(tmp_path: Path, text: str) -> Path:
    """A folder with a UTF-8, a Latin-1 and a UTF-16 file, Windows line ends, decomposed characters, and a PDF."""
    folder = tmp_path / "notes"
    folder.mkdir()
    decomposed = unicodedata.normalize("NFD", "é ü\r\n")
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbf" + (text + decomposed).encode())
    (folder / "b.txt").write_bytes("Grüße, schöne Straße\r\n".encode("latin-1"))
    (folder / "c.txt").write_bytes("voilà\r\n".encode("utf-16"))
    (folder / "d.docx").write_bytes(b"%PDF-1.5")
    return folder


def test_the_header_says_what_was_read_and_chosen(
    notes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_train("data=text", f"data.path={notes}", *TINY, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/run")
    out = " ".join(capsys.readouterr().out.split())
    size = sum(path.stat().st_size for path in notes.glob("*.txt"))
    characters = 2000 + len("é ü\n") + len("Grüße, schöne Straße\n") + len("voilà\n")
    read = f"3 files, {size / 1000:.1f} kB, {characters:,} characters, 1 in latin-1, 1 in utf-16, 1 left out (1 pdf)"
    assert f"text {read} run" in out
    train = characters - characters // 10
    assert f"chosen batch size 4, bptt 32 for {train:,} training characters" in out
    assert f"{notes}/b.txt as latin-1, {notes}/c.txt as utf-16" in out
    assert "too short" not in out


def test_line_ends_and_composition_are_recorded_and_prompts_are_treated_alike(notes: Path, tmp_path: Path) -> None:
    run_train("data=text", f"data.path={notes}", *TINY, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/run")
    model = charlm.load(tmp_path / "run")
    assert model.normalisation == {"lowercase": False, "newlines": "unix", "unicode": "NFC"}
    assert not set("\r\N{COMBINING ACUTE ACCENT}\ufeff") & set(model.vocab.chars)
    assert model.score("é\r\né\r") == model.score("e\N{COMBINING ACUTE ACCENT}\né\n")
    assert model.generate("é\r\n", 9, seed=1) == model.generate(unicodedata.normalize("NFD", "é\n"), 9, seed=1)


def test_what_was_chosen_is_recorded_as_numbers_and_a_resume_uses_it(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_train("data=text", f"data.path={text_file}", *TINY, "data.batch_size=30", f"hydra.run.dir={run}")
    steps = -(-(1799 // 30) // 32)  # columns of a stream over bptt
    epochs = -(-400 // steps)
    assert f"chosen  bptt 32, {epochs} epochs for 1,800 training characters" in capsys.readouterr().out
    for config in (
        read_safely(run / "checkpoints/last.ckpt")[KEY]["config"],
        OmegaConf.load(run / ".hydra/config.yaml"),
    ):
        sizes = config["data"]["batch_size"], config["data"]["bptt"], config["trainer"]["max_epochs"]
        assert sizes == (30, 32, epochs)
    run_train(f"resume={run}", "trainer.max_epochs=auto")
    assert f"had already finished its {epochs} epochs" in capsys.readouterr().out
    run_train(f"resume={run}", f"trainer.max_epochs={epochs + 1}")
    assert f"epoch {epochs + 1} " in capsys.readouterr().out


def test_a_named_corpus_keeps_its_numbers(tmp_path: Path) -> None:
    limits = "trainer.limit_train_batches=1", "trainer.limit_val_batches=1"
    run_train("data=python_docs", *TINY, *limits, f"hydra.run.dir={tmp_path}/run")
    config = OmegaConf.load(tmp_path / "run/.hydra/config.yaml")
    assert (config.data.batch_size, config.data.bptt, config.trainer.max_epochs) == (64, 8, 9)
    assert charlm.load(tmp_path / "run").normalisation == {"lowercase": False, "newlines": "keep", "unicode": "keep"}


def test_windows_and_mixes_choose_too(text_file: Path, tmp_path: Path) -> None:
    run_train("data=text_windows", f"data.path={text_file}", *TINY, "data.stride=8", f"hydra.run.dir={tmp_path}/a")
    config = OmegaConf.load(tmp_path / "a/.hydra/config.yaml")
    assert (config.data.batch_size, config.data.bptt, config.trainer.max_epochs) == (512, 8, 400)
    run_train("data=mix", f"data.paths=[{text_file},{text_file}]", *TINY, f"hydra.run.dir={tmp_path}/b")
    config = OmegaConf.load(tmp_path / "b/.hydra/config.yaml")
    assert (config.data.batch_size, config.data.bptt, config.trainer.max_epochs) == (4, 32, 22)


@pytest.mark.parametrize("listed", ["[a.txt,b.txt]", "[notes]"])
def test_a_list_of_paths_points_to_a_mix(listed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_train("data=text", f"data.path={listed}", *TINY)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.startswith("error: data.path=") and f"data=mix 'data.paths={listed}'" in error
    assert error.count("\n") == 1
