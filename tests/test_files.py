"""Files: names from models cannot lead out of their folder, writes are whole, results survive."""

from __future__ import annotations

import multiprocessing
import pickle

import pytest

from workbench import files
from workbench.exceptions import WorkbenchError


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../b", "C:\\windows", "..\\up", "nul\0byte", "", "http://host/x"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    with pytest.raises(WorkbenchError, match="not inside"):
        files.inside(tmp_path, name)


def test_a_plain_name_and_a_subfolder_are_fine(tmp_path):
    assert files.inside(tmp_path, "model-00001-of-00002.safetensors").parent == tmp_path
    assert files.inside(tmp_path, "shards/a.safetensors").parent == tmp_path / "shards"


def write_half(path):
    with files.whole(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_old_file_and_no_leftover(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_a_finished_write_replaces_the_file(tmp_path):
    path = tmp_path / "new" / "report.html"
    with files.whole(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def put(name, number):
    files.cache(name).put({f"key {number}": {"value": number}})


def test_two_processes_can_write_one_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=put, args=("shared", number)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert files.cache("shared").get(["key 0", "key 1", "key 2"]) == {"key 0": {"value": 0}, "key 1": {"value": 1}}


def test_the_cache_answers_for_more_keys_than_one_query_can_hold(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    cache = files.cache("many")
    values = {str(number): number for number in range(2500)}
    cache.put(values)
    assert cache.get(list(values)) == values


def test_a_digest_tells_apart_what_differs_only_in_where_it_is_cut():
    assert files.digest("ab", "c") != files.digest("a", "bc")
    assert files.digest(b"x") == files.digest(b"x")


def test_an_error_keeps_its_parts_between_processes():
    error = WorkbenchError("file", "was empty", allowed="a model", do="download it again")
    again = pickle.loads(pickle.dumps(error))
    assert (again.item, again.found, again.allowed, again.do) == ("file", "was empty", "a model", "download it again")
    assert "Try: download it again" in str(again)


def test_free_bytes_are_those_of_the_disk_that_a_folder_would_be_made_on(tmp_path):
    there, not_yet = files.free_bytes(tmp_path), files.free_bytes(tmp_path / "not" / "yet")
    assert not_yet == pytest.approx(there, rel=0.2)  # others write to the disk in the meantime
