"""What a project is known by."""

from pathlib import Path

from git_repository import commit, git

from pd_core.pipeline.provenance import code_commit


def test_clones_that_differ_in_results_alone_are_at_the_same_commit_of_the_code(
    tmp_path: Path,
) -> None:
    assert code_commit(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    found = []
    for name in ("code.py", "dvc.lock", "params.yaml"):
        (tmp_path / name).write_text(name)
        commit(tmp_path)
        found.append(code_commit(tmp_path))
    first, with_results, with_other_params = found
    assert first is not None
    assert with_results == first
    assert with_other_params != first
