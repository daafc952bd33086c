"""Ideas by name: who registered them, under which version, and what a run is called by them."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from prefix_rft_lab.core import registry
from prefix_rft_lab.core.config import ConfigError, preset
from prefix_rft_lab.core.registry import Registry


@pytest.fixture
def colours(monkeypatch):
    """A registry of one idea of the kit's; the field ``name`` of a config names one of its ideas."""
    monkeypatch.setattr(registry, "REGISTRIES", [])
    found: Registry[object] = Registry("colour", "name")
    exec_in("prefix_rft_lab.colours", found, "registry['red'] = 1")
    return found


def exec_in(module: str, found: Registry[object], code: str) -> dict:
    """Run code as if it stood in a module."""
    scope = {"__name__": module, "registry": found}
    exec(code, scope)
    return scope


def test_an_idea_is_found_by_its_name_and_knows_where_it_comes_from(colours):
    exec_in("mine", colours, "@registry.register('blue', version='2')\ndef blue(): return 'b'")
    assert colours.find("blue")() == "b"
    assert colours.entries["red"].is_kit and colours.entries["red"].version is None
    assert not colours.entries["blue"].is_kit
    assert (colours.entries["blue"].module, colours.entries["blue"].version) == ("mine", "2")
    colours["green"] = SimpleNamespace(version="7")
    assert (colours.entries["green"].module, colours.entries["green"].version) == (__name__, "7")


def test_an_unknown_name_lists_the_known_ones_and_the_nearest(colours):
    exec_in("mine", colours, "registry['blue'] = 2")
    with pytest.raises(ConfigError, match=r"name = 'blu' is not known; use one of red, blue; did you mean 'blue'\?$"):
        colours.find("blu")
    with pytest.raises(ConfigError, match=r"name = 'xyz' is not known; use one of red, blue$"):
        colours.find("xyz")


def test_two_ideas_of_one_name_are_refused(colours):
    with pytest.raises(ConfigError, match=r"colour 'red' is the name of another idea, of the kit; give yours another"):
        exec_in("mine", colours, "@registry.register('red')\ndef mine(): ...")
    exec_in("mine", colours, "@registry.register('blue')\ndef mine(): ...")
    with pytest.raises(ConfigError, match="'blue' is the name of another idea, of module 'mine'"):
        exec_in("theirs", colours, "@registry.register('blue')\ndef mine(): ...")
    with pytest.raises(ConfigError, match="'blue' is the name of another idea"):
        exec_in("mine", colours, "@registry.register('blue')\ndef other(): ...")


def test_a_cell_that_runs_again_and_a_module_that_is_read_again_replace_their_idea(colours, monkeypatch):
    for version in ("1", "2"):
        exec_in("mine", colours, f"@registry.register('blue', version='{version}')\ndef mine(): return {version}")
    assert colours["blue"]() == 2 and colours.entries["blue"].version == "2"
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    exec_in("__main__", colours, "@registry.register('green')\ndef first(): return 1")
    exec_in("__main__", colours, "@registry.register('green')\ndef renamed(): return 2")
    assert colours["green"]() == 2


def test_the_users_ideas_are_part_of_a_configs_identity_and_the_kits_are_not(colours):
    config = preset("tiny", name="red")
    assert registry.with_ideas(config) is config
    hashes = {config.hash()}
    for version in ("None", "'1'", "'2'"):
        exec_in("mine", colours, f"@registry.register('blue', version={version})\ndef mine(): ...")
        hashes.add(registry.with_ideas(config.replace(name="blue")).hash())
    assert len(hashes) == 4
    found = registry.with_ideas(config.replace(name="blue"))
    assert found.ideas == {"name blue": "2"} and registry.unversioned(found) == []
    assert registry.with_ideas(found) is found
    assert registry.with_ideas(found.replace(name="red")).hash() == config.hash(), "ideas that are no longer used go"
    exec_in("mine", colours, "@registry.register('blue')\ndef mine(): ...")
    assert registry.unversioned(registry.with_ideas(found)) == ["name blue"]


def test_what_an_idea_uses_counts_too(colours):
    other: Registry[object] = Registry("shape")
    exec_in("mine", other, "registry.register('round', version='3')(len)")
    colours["blue"] = SimpleNamespace(version="1", uses=lambda config: [(other, "round")])
    assert registry.with_ideas(preset("tiny", name="blue")).ideas == {"name blue": "1", "shape round": "3"}
    colours["green"] = SimpleNamespace(uses=lambda config: [(other, "rond")])
    with pytest.raises(ConfigError, match=r"shape = 'rond' is not known; use one of round; did you mean 'round'\?"):
        registry.with_ideas(preset("tiny", name="green"))


def test_ideas_come_from_modules_that_are_named(colours, tmp_path, monkeypatch):
    (tmp_path / "my_colours.py").write_text(
        "from prefix_rft_lab.core.registry import REGISTRIES\nREGISTRIES[0].register('blue', version='1')(len)\n"
    )
    (tmp_path / "broken_colours.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = registry.with_ideas(preset("tiny", name="blue", imports=["my_colours"]))
    monkeypatch.delitem(sys.modules, "my_colours")
    assert config.ideas == {"name blue": "1"} and config.imports == ("my_colours",)
    assert config.hash() == config.replace(imports=[]).hash(), "where an idea is found names no run"
    with pytest.raises(
        ConfigError, match=r"imports = 'no_such' cannot be imported \(ModuleNotFoundError: .*; run where"
    ):
        registry.load(["no_such"])
    with pytest.raises(
        ConfigError, match=r"'broken_colours' cannot be imported \(ZeroDivisionError: division by zero\)"
    ):
        registry.load(["broken_colours"])


def test_installed_packages_register_ideas_by_an_entry_point(colours, tmp_path, monkeypatch):
    (tmp_path / "their_colours.py").write_text(
        "from prefix_rft_lab.core.registry import REGISTRIES\nREGISTRIES[0]['blue'] = 3\n"
    )
    found = tmp_path / "theirs-1.dist-info"
    found.mkdir()
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (found / "entry_points.txt").write_text("[prefix_rft_lab.ideas]\ncolours = their_colours\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry._entry_points.cache_clear()
    registry.load()
    registry._entry_points.cache_clear()
    sys.modules.pop("their_colours")
    assert colours["blue"] == 3 and colours.entries["blue"].module == "their_colours"


def test_ideas_that_no_other_process_can_import_are_refused_with_the_way_out(colours):
    exec_in("__main__", colours, "registry['blue'] = 2")
    registry.check_importable(preset("tiny", name="red"))
    with pytest.raises(
        ConfigError, match=r"name = 'blue' was registered in this notebook or script, .* --import my_ideas"
    ):
        registry.check_importable(preset("tiny", name="blue"))
