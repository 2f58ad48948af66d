"""Every version is pinned, and THIRD_PARTY.md names what the package is made of."""

import re
from importlib.metadata import PackageNotFoundError

import pytest
from packaging.version import Version
from supply_chain import PROJECT, canonical, closure, requirements

PIN = re.compile(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)")


def pins() -> dict[str, str]:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    found = [PIN.fullmatch(line) for line in lines]
    wrong = [line for line, match in zip(lines, found, strict=True) if match is None]
    assert not wrong, "no address, hash, marker or range belongs there"
    return {match[1]: match[2] for match in found if match}


def test_constraints_are_sorted_pins_and_nothing_else() -> None:
    names = list(pins())

    assert names == sorted(set(names))


def test_every_installed_dependency_is_pinned_at_its_version() -> None:
    pinned = pins()
    # A build for one kind of processor has a local version, such as 2.0+cpu.
    installed = {
        name: Version(version).public for name, version in closure(requirements("dev")).items()
    }

    assert {name: Version(pinned.get(name, "0")).public for name in installed} == installed


def test_a_closure_follows_extras_and_refuses_what_is_not_installed() -> None:
    assert {"dvc", "dvc-s3", "aiobotocore", "botocore", "jmespath"} <= closure(["dvc[s3]"]).keys()
    assert "dvc-s3" not in closure(["dvc"])
    with pytest.raises(PackageNotFoundError):
        closure(["packaging", "no-such-distribution"])


def test_the_tools_of_the_audit_are_pinned() -> None:
    tools = set(requirements("audit")) - set(requirements())

    assert tools
    assert tools <= set(pins())


def test_every_distribution_of_an_installation_is_named_with_its_licence() -> None:
    text = (PROJECT / "THIRD_PARTY.md").read_text()
    rows = re.findall(r"^\| ([\w.-]+) +\| (\S.*?) +\|$", text.partition("## Dependencies")[2], re.M)
    named = {canonical(name) for name, _ in rows} - {"name"}

    assert set(closure(requirements())) <= named


def test_what_the_package_ships_is_named() -> None:
    text = (PROJECT / "THIRD_PARTY.md").read_text()
    data = [
        path.name
        for path in (PROJECT / "pd_core").rglob("*")
        if path.suffix in (".safetensors", ".gz", ".json") and path.name != "zero_shot.json"
    ]

    assert len(data) == 6
    for name in data:
        assert re.sub("embedded-[a-z]+", "embedded-*", name) in text
