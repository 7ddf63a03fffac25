"""The native engine's library: compiled by the build hook, checked before it runs, never stale."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from mpnn.errors import InputError
from mpnn.optimizations.native import build, library, toolchain

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
NATIVE = Path("mpnn", "optimizations", "native")
SOURCE = """#include <cstdint>
#include <vector>
extern "C" __attribute__((visibility("default"))) int32_t mpnn_abi_version(void) {
  return std::vector<int32_t>(%d).size();
}
"""
AVX2 = "fpu sse2 avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
AVX512 = f"{AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No library is loaded, and the environment asks for nothing."""
    for variable in ("MPNN_NATIVE", "MACOSX_DEPLOYMENT_TARGET"):
        monkeypatch.delenv(variable, raising=False)
    library.load.cache_clear()
    yield
    library.load.cache_clear()


def tiny_project(folder, monkeypatch):
    """Makes `folder` the place of a tiny library's sources and of its libraries."""
    if toolchain.target() not in toolchain.LEVELS:
        pytest.skip(f"no native code for {toolchain.target()}")
    monkeypatch.setattr(toolchain, "SOURCES", folder / "src")
    monkeypatch.setattr(toolchain, "LIBRARIES", folder / "lib")
    (folder / "src").mkdir()
    (folder / "src" / "a.cpp").write_text(SOURCE % library.ABI_VERSION)
    return folder / "src"


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A tiny library's sources, in a tree of its own with a folder for its libraries."""
    return tiny_project(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """The libraries of the tiny sources, compiled once: seconds for each of many tests."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny_project(tmp_path_factory.mktemp("compiled"), monkeypatch)
        try:
            toolchain.find_compiler()
        except toolchain.BuildError as error:
            pytest.skip(str(error))
        return toolchain.build(toolchain.WARNINGS)


@pytest.fixture
def built(compiled, sources):
    """The libraries of the tiny sources, beside them: a copy that the test may damage."""
    assert sources.is_dir()
    toolchain.LIBRARIES.mkdir()
    return [Path(shutil.copy2(path, toolchain.LIBRARIES)) for path in compiled]


def cpu(monkeypatch, tmp_path, flags, target="linux-x86_64"):
    """Pretends that this is a Linux machine whose CPU has these flags."""
    monkeypatch.setattr(toolchain, "target", lambda: target)
    monkeypatch.setattr(library, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")


def test_one_library_per_level_and_the_best_of_this_cpu_is_loaded(built):
    """Every level of the platform is built; the best that this CPU runs is loaded once."""
    levels = list(toolchain.LEVELS[toolchain.target()])
    assert [path.stem.split("-")[2] for path in built] == levels
    reason = library.unavailable()
    if reason:
        pytest.skip(reason)
    loaded = library.load()
    assert loaded.path in built
    assert loaded.level in levels
    assert library.load() is loaded


def test_a_build_is_repeated_only_for_changed_sources(built, sources):
    """Unchanged sources are not compiled again; a library of changed ones is never loaded."""
    before = [path.stat().st_mtime_ns for path in built]
    assert toolchain.build() == built
    assert [path.stat().st_mtime_ns for path in built] == before
    (sources / "a.cpp").write_text(SOURCE % library.ABI_VERSION + "// changed\n")
    assert "older than its sources" in library.unavailable()
    renewed = toolchain.build()
    assert not set(renewed) & set(built)
    assert set(toolchain.LIBRARIES.iterdir()) == set(renewed)


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "text"])
def test_a_corrupt_library_is_refused_and_built_again(built, damage):
    """A damaged file is an error in one sentence, not a crash, and the next build replaces it."""
    for path in built:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(
            {"truncated": bytes(data[:5000]), "one bit": bytes(data), "empty": b"", "text": b"no"}[
                damage
            ]
        )
    with pytest.raises(library.NativeError, match="is not the file that was built"):
        library.load()
    assert all(map(toolchain.intact, toolchain.build()))


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF" + bytes(200)])
def test_a_foreign_file_is_refused(built, content):
    """A file that is no library of this platform is an error, whatever it is called."""
    for path in built:
        path.write_bytes(content)
        level = path.stem.split("-")[2]
        toolchain._place(path, level)
    with pytest.raises(library.NativeError, match="cannot be loaded"):
        library.load()


@pytest.mark.parametrize(
    ("source", "message"),
    [(SOURCE % (library.ABI_VERSION + 1), "has version"), ("int x;\n", "mpnn_abi_version")],
)
def test_another_c_interface_is_refused(sources, source, message):
    """A library of another version, or without one, is not used."""
    (sources / "a.cpp").write_text(source)
    try:
        toolchain.build()
    except toolchain.BuildError as error:
        pytest.skip(str(error))
    with pytest.raises(InputError, match=message):
        library.load()


@pytest.mark.parametrize(
    ("flags", "wanted", "level"),
    [
        (AVX512, "1", "v4"),
        (AVX2, "1", "v3"),
        (AVX512.replace("avx512vl", ""), "", "v3"),
        (AVX512.replace("movbe", ""), "1", None),
        (AVX512, "v3", "v3"),
        (AVX2, "v4", None),
        ("fpu sse2", "1", None),
    ],
)
def test_the_level_is_chosen_by_cpu_flags(tmp_path, monkeypatch, flags, wanted, level):
    """v4 needs AVX-512 F, BW, CD, DQ and VL, v3 AVX2 and FMA; MPNN_NATIVE picks a lower one."""
    cpu(monkeypatch, tmp_path, flags)
    monkeypatch.setenv("MPNN_NATIVE", wanted)
    if level:
        assert library._level() == level
    else:
        with pytest.raises(
            library.NativeError, match=r"this CPU lacks .*; take engine exact-torch"
        ):
            library._level()


def test_arm_needs_no_flags(tmp_path, monkeypatch):
    """Every 64-bit Arm CPU has NEON; other machines have no native code."""
    for target in ("linux-aarch64", "darwin-arm64"):
        cpu(monkeypatch, tmp_path, "", target)
        assert library._level() == "neon"
    cpu(monkeypatch, tmp_path, "", "linux-riscv64")
    assert "no native engine for linux-riscv64" in library.unavailable()


def test_the_environment_switches_it_off(built, monkeypatch):
    """MPNN_NATIVE=0 switches off; a word that is not a level is an error that lists them."""
    assert built
    monkeypatch.setenv("MPNN_NATIVE", "0")
    assert "switched off by MPNN_NATIVE=0" in library.unavailable()
    monkeypatch.setenv("MPNN_NATIVE", "fast")
    assert re.search("MPNN_NATIVE=fast is not one of 0, 1, ", library.unavailable())


def test_a_missing_compiler_is_named(sources, monkeypatch):
    """Without a compiler the reason is kept, and loading says it."""
    assert sources
    monkeypatch.setenv("CXX", "no-such-compiler --flag")
    with pytest.raises(
        toolchain.BuildError, match=r"tried no-such-compiler --flag.*ziglang"
    ) as bad:
        toolchain.build()
    toolchain.record_failure(str(bad.value))
    if library.unavailable().startswith("this CPU"):
        pytest.skip("a CPU without the instructions is named first")
    assert "no native library was built because no C++20 compiler works" in library.unavailable()


def hook(root=ROOT):
    return build.NativeLibraries(str(root), {}, None, None, "", "wheel")


def test_zig_is_asked_for_only_without_a_compiler(tmp_path, monkeypatch):
    """`ziglang` is a build dependency where no compiler works, one fails, and none is named."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build, "toolchain", toolchain)
    monkeypatch.setattr(toolchain, "target", lambda: "linux-x86_64")
    mock = tmp_path / "c++"  # what macOS has without its command line tools
    mock.write_text("#!/bin/sh\nexit 1\n")
    mock.chmod(0o755)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hook().dependencies() == ["ziglang>=0.13"]
    monkeypatch.setenv("MPNN_NATIVE", "0")
    assert hook().dependencies() == []
    monkeypatch.delenv("MPNN_NATIVE")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert hook().dependencies() == []
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", path)
    try:
        toolchain.find_compiler(zig=False)
    except toolchain.BuildError as error:
        pytest.skip(str(error))
    assert hook().dependencies() == []


@pytest.fixture
def project(tmp_path):
    """This project with the tiny library's sources and without checkpoints."""
    root = tmp_path / "project"
    shutil.copytree(
        ROOT / "mpnn",
        root / "mpnn",
        ignore=shutil.ignore_patterns("*.safetensors", "lib", "src", "__pycache__"),
    )
    for name in ("pyproject.toml", ".gitignore", "README.md", "CHANGELOG.md", "LICENSE", "tox.ini"):
        shutil.copy(ROOT / name, root / name)
    (root / NATIVE / "src").mkdir()
    (root / NATIVE / "src" / "a.cpp").write_text(SOURCE % library.ABI_VERSION)
    return root


def make(root, what, **environment):
    """The file that hatchling builds, and all that it said."""
    code = f"from hatchling.build import *; print('made', build_{what}('dist'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    name = re.search(r"^made (\S+)$", done.stdout, re.M)
    return (root / "dist" / name[1] if name else None), done.stdout


def libraries_in(wheel):
    """Files of the wheel's folder of libraries."""
    with zipfile.ZipFile(wheel) as archive:
        return [n for n in archive.namelist() if n.startswith(f"{NATIVE}/lib/")]


def test_wheel_holds_every_level(project, built):
    """With a compiler the wheel is for this platform, any Python 3, and loads where unpacked."""
    wheel, said = make(project, "wheel", MPNN_NATIVE="1")
    assert wheel is not None, said
    assert re.fullmatch(r"mpnn-[\d.]+-py3-none-(linux|macosx_\d+_0)_\w+\.whl", wheel.name)
    assert len(libraries_in(wheel)) == len(built)
    unpacked = project.parent / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    code = "from mpnn.optimizations.native.library import *; print(unavailable() or load().path)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project.parent,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert library.unavailable() or Path(done.stdout.strip()).is_relative_to(unpacked)


def test_wheel_without_a_compiler_is_pure_and_says_why(project):
    """Nothing can compile: the wheel runs on any platform and keeps the reason for later."""
    wheel, said = make(project, "wheel", CXX="no-such-compiler")
    assert "no native engine in this build" in said
    assert wheel.name.endswith("-py3-none-any.whl")
    (reason,) = libraries_in(wheel)
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(reason).decode()
    assert text.count("\n") == 1
    assert "no-such-compiler" in text or "no native code for" in text
    assert make(project, "wheel", CXX="no-such-compiler", MPNN_NATIVE="1")[0] is None


def test_switched_off_build_is_pure(project):
    """MPNN_NATIVE=0 builds no library where one could be built."""
    wheel, _ = make(project, "wheel", MPNN_NATIVE="0")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert [Path(name).name for name in libraries_in(wheel)] == [toolchain.WHY_NOT]


def test_editable_installation_builds_beside_the_sources(built, monkeypatch):
    """An editable installation compiles in the source tree, where git ignores the libraries."""
    for path in built:
        path.unlink()
    monkeypatch.setattr(build, "toolchain", toolchain)
    data = {"artifacts": []}
    hook(toolchain.LIBRARIES.parent).initialize("editable", data)
    assert set(toolchain.LIBRARIES.iterdir()) == set(built)
    assert data["artifacts"] == [f"/lib/{path.name}" for path in built]
    assert f"/{NATIVE}/lib/" in (ROOT / ".gitignore").read_text().splitlines()


def test_sdist_has_sources_and_no_libraries(project, built):
    """A wheel can be built from an unpacked sdist, which holds nothing compiled."""
    make(project, "wheel")
    assert (project / NATIVE / "lib").is_dir()
    sdist, said = make(project, "sdist")
    assert sdist is not None, said
    shutil.unpack_archive(sdist, project.parent / "sdist", filter="data")
    (tree,) = (project.parent / "sdist").iterdir()
    assert not (tree / NATIVE / "lib").exists()
    wheel, said = make(tree, "wheel", MPNN_NATIVE="1")
    assert wheel is not None, said
    assert len(libraries_in(wheel)) == len(built)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_pin_actions_and_limit_their_tokens(path):
    """Every action is pinned by its commit, every job ends, and only `comment` may write."""
    workflow = yaml.safe_load(path.read_text())
    writes = {k for k, v in workflow["permissions"].items() if v != "read"}
    assert writes == ({"pull-requests"} if path.stem == "comment" else set())
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= (300 if path.stem == "mac" else 60)
        uses = [step["uses"] for step in job["steps"] if "uses" in step]
        assert all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action) for action in uses)


def test_release_has_a_wheel_for_every_platform():
    """The release workflow builds for the platforms that have native code, and no others."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    names = {row["name"] for row in workflow["jobs"]["wheels"]["strategy"]["matrix"]["include"]}
    assert {name.replace("macos", "darwin") for name in names} == set(toolchain.LEVELS)


def cpp_files():
    return [str(path) for suffix in ("cpp", "h") for path in toolchain.SOURCES.glob(f"*.{suffix}")]


def tool(name):
    path = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return path or pytest.skip(f"{name} is not installed; pip install {name}")


def test_sources_are_formatted():
    """clang-format would change nothing."""
    command = [tool("clang-format"), "--dry-run", "--Werror", *cpp_files()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_sources_pass_clang_tidy():
    """clang-tidy finds no mistake, in the code of either vector width."""
    for level in ("x86-64-v3", "x86-64-v4"):
        files = [name for name in cpp_files() if name.endswith(".cpp")]
        command = [
            tool("clang-tidy"),
            "--quiet",
            *files,
            "--",
            "-std=c++20",
            "-target",
            "x86_64-linux-gnu",
            f"-march={level}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_sources_compile_without_warnings(tmp_path, monkeypatch):
    """Every level compiles with warnings as errors, and loads."""
    monkeypatch.setattr(toolchain, "LIBRARIES", tmp_path)
    try:
        toolchain.find_compiler()
    except toolchain.BuildError as error:
        pytest.skip(str(error))
    toolchain.build(toolchain.WARNINGS)
    reason = library.unavailable()
    assert reason is None or reason.startswith("this CPU lacks")
