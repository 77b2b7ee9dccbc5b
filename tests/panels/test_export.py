"""The Export panel: what it says is what it writes, and what it refuses it leaves untouched."""

from __future__ import annotations

import errno
import itertools
import os
import shlex
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import workbench as wb
from tests import tiny
from tests.panels.driving import finished, html_of, until
from workbench import panels
from workbench.panels.elsewhere import ways
from workbench.writing import exporting

SEEDS = itertools.count(500)


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> panels.Session:
    """Over a GGUF, in a working folder of its own."""
    path = tiny.gguf(tmp_path / "tiny.gguf", tiny.weights(seed=next(SEEDS)), "F32")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return panels.Session(wb.load(path), source=str(path), threaded=True)


def there() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path.cwd().iterdir()}


def test_the_file_is_what_the_panel_said_and_what_its_code_writes(session):
    panel = wb.app(session=session).export
    assert panel.path.value == "tiny-Q4_K_M.gguf"
    for box in panel.also.values():
        box.value = True
    promised = panel.facts.value
    panel.run()
    finished(session)
    assert set(there()) == {f"tiny-Q4_K_M.{end}" for end in ("gguf", "Modelfile", "plan.json", "tensor-types.txt")}
    written = there()
    assert f"{len(written['tiny-Q4_K_M.gguf']):,} bytes" in promised
    assert f"{len(written['tiny-Q4_K_M.gguf']):,} bytes" in html_of(panel)
    assert session.files == {"Q4_K_M": "tiny-Q4_K_M.gguf"}
    assert {info.name: info.encoding for info in wb.load("tiny-Q4_K_M.gguf").matrices} == {
        name: used.name for name, used in wb.plan_for(session.checkpoint, "Q4_K_M").formats.items()
    }
    code = panel.code
    for name in written:
        Path(name).unlink()
    exec(code, {})
    assert there() == written


def test_a_plan_of_the_session_is_written(session):
    mix = {info.name: "Q8_0" if info.role == "v_proj" else "Q4_0" for info in session.checkpoint.matrices}
    session.use(wb.plan_for(session.checkpoint, mix))
    panel = panels.Export(session)
    assert panel.path.value == "tiny-by-tensor.gguf"
    panel.run()
    finished(session)
    found = {info.name: info.encoding for info in wb.load("tiny-by-tensor.gguf").matrices}
    assert found == mix
    code, written = panel.code, there()
    Path("tiny-by-tensor.gguf").unlink()
    exec(code, {})
    assert there() == written


def test_a_file_that_is_there_is_replaced_only_when_told_so(session):
    Path("tiny-Q4_K_M.gguf").write_text("precious")
    panel = panels.Export(session)
    assert "There already: tiny-Q4_K_M.gguf (8 B)" in html_of(panel)
    panel.run()
    assert "it is there already" in panel.strip.said.value
    assert there() == {"tiny-Q4_K_M.gguf": b"precious"}
    panel.replace.value = True
    panel.path.value = "other.gguf"
    panel.path.value = "tiny-Q4_K_M.gguf"
    assert not panel.replace.value  # it was said of the file of that moment
    panel.replace.value = True
    panel.run()
    finished(session)
    assert there()["tiny-Q4_K_M.gguf"][:4] == b"GGUF"


def test_what_gguf_cannot_hold_is_refused_and_the_nearest_mix_offered(session):
    session.format = "NF4"
    panel = panels.Export(session)
    assert "GGUF files have no NF4" in html_of(panel)
    assert panel.write.disabled
    assert panel.code == ""
    panel.instead.click()
    assert session.format in wb.RECIPES
    assert not panel.write.disabled
    assert "GGUF files have no" not in html_of(panel)


def test_an_importance_that_is_needed_comes_from_the_measured_text(session, tmp_path):
    session.format, session.formats = "IQ2_XXS", ("Q4_K",)
    panel = panels.Export(session)
    assert "without an importance matrix" in html_of(panel)
    assert panel.write.disabled
    text = "the cat sat on the mat and then it sat in the hat. " * 40
    session.text = text
    session.show(wb.errors(session.checkpoint, ["Q4_K"], text))
    assert not panel.write.disabled
    assert panel.weigh.layout.display is None
    for box in panel.also.values():
        box.value = True
    panel.run()
    finished(session)
    said = wb.load("tiny-IQ2_XXS.gguf").metadata["quantize.imatrix.dataset"]
    assert "tokens of a text" in said
    kept = wb.load("tiny-IQ2_XXS.gguf").path.with_suffix(".imatrix.gguf")
    assert kept.is_file()
    written, code = there(), panel.code
    for name in written:
        Path(name).unlink()
    exec(code, {})
    assert there() == written
    panel.weigh.value = False
    assert panel.write.disabled


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("model.bin", "ending in .gguf"),
        (os.curdir + "/folder.gguf", "it is a folder"),
        ("own.gguf", "a file of the model itself"),
        ("file/model.gguf", "cannot be written to (Not a directory)"),
    ],
)
def test_a_place_that_will_not_do_is_named_and_the_panel_goes_on(session, path, said):
    Path("folder.gguf").mkdir()
    Path("file").write_text("a file, no folder")
    Path("own.gguf").symlink_to(session.checkpoint.path)
    before = session.checkpoint.path.read_bytes()
    panel = panels.Export(session)
    panel.path.value, panel.replace.value = path, True
    panel.also["Modelfile"].value = False
    panel.replace.value = True
    panel.run()
    assert session.jobs.wait(60)
    assert said in panel.strip.said.value
    assert "Traceback" not in panel.strip.said.value
    assert session.checkpoint.path.read_bytes() == before
    assert session.files == {}
    assert panel.written is None
    panel.path.value = "good.gguf"
    panel.run()
    finished(session)
    assert Path("good.gguf").is_file()


@pytest.mark.parametrize("path", ["x" * 300 + ".gguf", "~nobody-of-that-name/x.gguf"])
def test_a_path_that_no_file_can_have_is_told_before_anything_is_asked(session, path):
    panel = panels.Export(session)
    panel.path.value = path
    assert "no file can be there" in panel.refused.value
    assert panel.write.disabled
    panel.path.value = "good.gguf"
    assert panel.refused.value == ""
    assert not panel.write.disabled


def test_a_full_disk_is_named_with_what_is_needed_and_what_is_free(session, monkeypatch):
    panel = panels.Export(session)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000, total=1000, used=0))
    panel.refresh()
    assert "1 kB, which is not enough" in panel.facts.value
    panel.run()
    assert session.jobs.wait(60)
    assert "1 kB free" in panel.strip.said.value
    assert there() == {}


def test_a_disk_that_fills_up_while_writing_is_told_and_can_be_written_to_later(session, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    panel = panels.Export(session)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        panel.run()
        assert session.jobs.wait(60)
    assert "No space left" in panel.strip.said.value
    assert there() == {}
    assert session.files == {}
    panel.run()
    finished(session)
    assert set(there()) == {"tiny-Q4_K_M.gguf", "tiny-Q4_K_M.Modelfile"}


def test_a_model_without_a_tokenizer_is_told_and_another_is_written(session, tmp_path):
    session.open(wb.load(tiny.gguf(tmp_path / "bare.gguf", tiny.weights(), "F32", tokenizer=False)))
    panel = panels.Export(session)
    panel.run()
    assert session.jobs.wait(60)
    assert "it has no tokenizer" in panel.strip.said.value
    assert there() == {}
    session.open(wb.load(tmp_path / "tiny.gguf"))
    panel.run()
    finished(session)
    assert "tiny-Q4_K_M.gguf" in there()


def test_a_cancelled_export_leaves_the_old_file_and_no_half_one(session, monkeypatch):
    Path("tiny-Q4_K_M.gguf").write_text("precious")
    panel = panels.Export(session)
    reached, release = threading.Event(), threading.Event()
    original = exporting.stored.stream

    def slow(*given):
        for number, piece in enumerate(original(*given)):
            if number == 2:
                reached.set()
                release.wait(60)
            yield piece

    monkeypatch.setattr(exporting.stored, "stream", slow)
    panel.replace.value = True
    panel.run()
    assert reached.wait(60)
    session.jobs.cancel()
    assert session.jobs.wait(60)
    assert session.jobs.status.state == "cancelled"
    release.set()
    assert "Nothing was written" in panel.strip.said.value
    monkeypatch.setattr(exporting.stored, "stream", original)
    until(lambda: len(there()) == 1)  # the thread that was held has tidied up
    assert there() == {"tiny-Q4_K_M.gguf": b"precious"}
    panel.replace.value = True
    panel.run()
    finished(session)
    assert there()["tiny-Q4_K_M.gguf"][:4] == b"GGUF"


def test_another_model_lets_go_of_what_was_exported(session, tmp_path):
    panel = panels.Export(session)
    panel.run()
    finished(session)
    assert panel.made.layout.display is None
    session.open(wb.load(tiny.gguf(tmp_path / "other.gguf", tiny.weights(seed=3), "F32")))
    assert session.files == {}
    assert panel.made.layout.display == "none"
    assert panel.path.value == "other-Q4_K_M.gguf"


@pytest.mark.parametrize("path", ['it\'s $(id) `a` "b" & c.gguf', "-m.gguf", "plain.gguf"])
def test_commands_are_quoted_whatever_the_file_is_called(path):
    found = ways(path, path.replace(".gguf", ".Modelfile"))
    server = shlex.split(found[0].text)
    assert server[:2] == ["llama-server", "-m"]
    assert Path(server[2]) == Path(path)
    assert shlex.split(found[2].text)[3:5] == ["-f", server[2].replace(".gguf", ".Modelfile")]
    called = []
    exec(found[3].text, {"wb": SimpleNamespace(serve=lambda given, port: called.append(given))})
    assert called == [path]


def test_a_models_name_makes_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = tiny.folder(tmp_path / '..<b>"$(id)', tiny.weights())
    panel = panels.Export(panels.Session(wb.load(odd), threaded=True))
    assert panel.path.value == "b-id-Q4_K_M.gguf"
