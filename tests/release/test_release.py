"""A release: the key gives the base back bit for bit, and a copy is told from the locked model and from the base."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from speclock import InputError, SpecDef, models, tasks
from speclock.cli import main
from speclock.locks.card import NAME as CARD
from speclock.locks.rescale import Rescale
from speclock.models import Model
from speclock.recipe import TrainingRecipe
from speclock.release.files import Shipped, bits
from speclock.release.key import make_key, unlock
from speclock.release.manifest import describe, sketch
from speclock.release.signature import new_private_key, sign
from speclock.release.verify import Verdict, _judged, _Pair, verify
from speclock.tasks.base import Task
from speclock.training import train

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def before(digits: Task) -> Model:
    model = models.load("cnn-mlp", labels=digits.labels)
    train(model, digits, TrainingRecipe(optimizer="adam", lr=1e-3, steps=50, batch_size=32))
    return model


@pytest.fixture(scope="module")
def folders(before: Model, digits: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base, locked): σ raised threefold in every matrix, whatever that does to the digits."""
    place = tmp_path_factory.mktemp("release")
    made = Rescale(factor=3.0, evaluations=1, max_utility_drop=1.0)(before, digits)
    models.save(before, place / "base", extra={"README.md": "what it is\n", "empty.txt": ""})
    models.save(made.model, place / "locked", extra={CARD: json.dumps(made.card)})
    return place / "base", place / "locked"


@pytest.fixture
def signed(folders: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """(a signed copy of the release, the public key)."""
    copy = Path(shutil.copytree(folders[1], tmp_path / "locked"))
    public = new_private_key(tmp_path / "me.pem")
    sign(describe(copy), copy, tmp_path / "me.pem")
    return copy, public


def copy_with(tmp_path: Path, signed: Path, changed: dict[str, Tensor]) -> Path:
    """A copy of a release with other weights, the manifest beside them."""
    tmp_path.mkdir(exist_ok=True)
    copy = Path(shutil.copytree(signed, tmp_path / "copy"))
    save_file({**load_file(copy / WEIGHTS), **changed}, copy / WEIGHTS, metadata={"format": "pt"})
    return copy


# -- the key ---------------------------------------------------------------------------------------------


def test_a_key_gives_the_base_back_bit_for_bit(
    folders: tuple[Path, Path], before: Model, tmp_path: Path
) -> None:
    base, locked = folders
    held = make_key(base, locked, tmp_path / "model.key")
    assert held["changed"] > 0
    assert held["whole"] == 0
    unlock(locked, tmp_path / "model.key", tmp_path / "again")
    assert models.fingerprint(models.load(tmp_path / "again")) == models.fingerprint(before)
    assert (tmp_path / "again" / "README.md").read_text() == "what it is\n"
    assert (tmp_path / "again" / "empty.txt").read_bytes() == b""
    assert not (tmp_path / "again" / CARD).exists()  # it is the base, and locked no more
    for file in base.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_a_key_is_its_owners_and_no_larger_than_what_changed(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base, locked = folders
    make_key(base, locked, tmp_path / "model.key")
    assert (tmp_path / "model.key").stat().st_mode & 0o777 == 0o600
    tensors = load_file(tmp_path / "model.key")
    ours, theirs = load_file(base / WEIGHTS), load_file(locked / WEIGHTS)
    assert {name for name in tensors if not name.startswith("beside:")} == {
        name for name in ours if not torch.equal(ours[name], theirs[name])
    }


@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8]),
    st.lists(st.integers(0, 5), max_size=3),
    st.sampled_from(["changed", "same", "reshaped", "narrowed", "missing", "further"]),
    st.integers(0, 2**31),
)
def test_whatever_a_lock_does_to_a_tensor_is_undone(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, shape: list[int], how: str, seed: int
) -> None:
    """Every bit pattern, NaN of any payload and minus zero among them, of any dtype and shape."""
    place = tmp_path_factory.mktemp("bits")
    drawn = torch.Generator().manual_seed(seed)
    size = math.prod(shape) * dtype.itemsize
    one, other = (torch.randint(256, (size,), dtype=torch.uint8, generator=drawn) for _ in range(2))
    tensor, another = (each.view(dtype).reshape(shape) for each in (one, other))
    locked = {
        "changed": {"w": another},
        "same": {"w": tensor},
        "reshaped": {"w": another.reshape(-1, 1) if another.numel() else torch.zeros(1)},
        "narrowed": {"w": torch.zeros(shape, dtype=torch.int8)},
        "missing": {},
        "further": {"w": another, "v": another.clone()},
    }[how]
    for name, tensors in (("base", {"w": tensor}), ("locked", locked)):
        (place / name).mkdir()
        (place / name / "config.json").write_text("{}")
        save_file(
            {"always": torch.tensor([1.0 if name == "base" else 2.0]), **tensors}, place / name / WEIGHTS
        )
    make_key(place / "base", place / "locked", place / "key")
    unlock(place / "locked", place / "key", place / "again")
    again = load_file(place / "again" / WEIGHTS)
    assert set(again) == {"always", "w"}
    assert again["w"].dtype == dtype
    assert list(again["w"].shape) == shape
    assert torch.equal(bits(again["w"]), one)


def test_a_key_opens_its_own_release_alone(
    folders: tuple[Path, Path], signed: tuple[Path, Path], tmp_path: Path
) -> None:
    base, locked = folders
    make_key(base, locked, tmp_path / "model.key")
    name = next(iter(load_file(locked / WEIGHTS)))
    other = copy_with(tmp_path, signed[0], {name: load_file(locked / WEIGHTS)[name] + 1})
    with pytest.raises(InputError, match="made for other weights"):
        unlock(other, tmp_path / "model.key", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("where", [-1, 0.5, "what it is"])
def test_a_damaged_key_is_found_out(where: float | str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, locked = folders
    make_key(base, locked, tmp_path / "model.key")
    content = bytearray((tmp_path / "model.key").read_bytes())
    at = (
        content.index(where.encode())
        if isinstance(where, str)
        else int(where if where < 0 else where * len(content))
    )
    content[at] ^= 1
    (tmp_path / "model.key").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        unlock(locked, tmp_path / "model.key", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_what_lies_beside_the_weights_is_the_bases_own_whatever_the_release_has(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Folders, changed and missing files, metadata; weights in other formats are left out, and told."""
    base, locked = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders)
    (base / "part").mkdir()
    (base / "part" / "settings.json").write_text("{}")
    (base / "old.onnx").write_bytes(b"x")
    save_file(load_file(base / WEIGHTS), base / WEIGHTS, metadata={"format": "pt", "made": "here"})
    held = make_key(base, locked, tmp_path / "model.key")
    assert held["left_out"] == ["old.onnx"]
    (locked / "config.json").write_text((locked / "config.json").read_text() + "\n")
    unlock(locked, tmp_path / "model.key", tmp_path / "again")
    names = ["config.json", "part/settings.json", "empty.txt"]
    assert [
        name for name in names if (tmp_path / "again" / name).read_bytes() != (base / name).read_bytes()
    ] == []
    # The order of a header's metadata is not the writer's to choose.
    with safe_open(tmp_path / "again" / WEIGHTS, framework="pt") as again:
        assert again.metadata() == {"format": "pt", "made": "here"}
    assert Shipped.at(tmp_path / "again").digest() == Shipped.at(base).digest()


def test_a_sharded_base_comes_back_in_its_shards(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "w").mkdir(parents=True)
    tensors = load_file(folders[0] / WEIGHTS)
    where = {name: f"w/model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in tensors if where[name] == file}, base / file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    shutil.copy(folders[0] / "config.json", base)
    locked = Path(shutil.copytree(folders[1], tmp_path / "locked"))
    (locked / CARD).unlink()  # of a base in one file
    make_key(base, locked, tmp_path / "model.key")
    unlock(locked, tmp_path / "model.key", tmp_path / "again")
    for file in set(where.values()):
        assert (tmp_path / "again" / file).read_bytes() == (base / file).read_bytes()


def test_a_key_is_made_of_the_base_that_the_card_names_and_lies_outside_the_release(
    folders: tuple[Path, Path], signed: tuple[Path, Path], tmp_path: Path
) -> None:
    base, locked = folders
    other = tmp_path / "other"
    models.save(models.load("cnn-mlp", labels=models.load(base).labels, seed=5), other)
    with pytest.raises(InputError, match="is not the base"):
        make_key(other, locked, tmp_path / "key")
    with pytest.raises(InputError, match="lies in the release"):
        make_key(base, signed[0], signed[0] / "key")


@pytest.mark.parametrize("name", ["../outside", "/outside", "a\nb"])
def test_a_key_writes_no_file_outside_the_checkpoint(
    name: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    told = {"format": "speclock-key/1", "locked": "", "tensors": {}, "placed": {}, "beside": {name: "0" * 64}}
    save_file({"x": torch.zeros(1)}, tmp_path / "key", metadata={"speclock": json.dumps(told)})
    with pytest.raises(InputError, match="no file of a checkpoint"):
        unlock(folders[1], tmp_path / "key", tmp_path / "again")


def test_where_nothing_is_locked_there_is_no_key(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, locked = folders
    with pytest.raises(InputError, match="nothing to unlock"):
        make_key(base, base, tmp_path / "key")
    (tmp_path / "key").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        make_key(base, locked, tmp_path / "key")
    with pytest.raises(InputError, match="is no key"):
        unlock(locked, tmp_path / "key", tmp_path / "again")
    with pytest.raises(InputError, match="no such file"):
        unlock(locked, tmp_path, tmp_path / "again")


# -- the manifest ----------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(120, 300), st.integers(0, 2**31))
def test_a_sketch_is_linear_and_estimates_products(m: int, n: int, seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    W, V = (torch.randn(64 + m, n, generator=drawn, dtype=torch.float64) for _ in range(2))
    np.testing.assert_allclose(
        sketch("w", 2 * W - V), 2 * sketch("w", W) - sketch("w", V), rtol=1e-9, atol=1e-9
    )
    # Six standard deviations of √(2/61).
    assert abs(sketch("w", W) @ sketch("w", W) / float((W * W).sum()) - 1) < 6 * math.sqrt(2 / 61)


def test_a_column_that_outweighs_the_others_is_in_all_of_a_sketch() -> None:
    W = torch.zeros(384, 384)
    W[:, 7] = torch.randn(384, generator=torch.Generator().manual_seed(0))
    products = [float(sketch(str(i), W) @ sketch(str(i), W)) for i in range(200)]
    exact = float((W * W).sum())
    assert abs(np.mean(products) / exact - 1) < 0.1
    assert np.std(products) < 1.5 * math.sqrt(2 / 61) * exact


def test_signs_are_the_same_on_every_machine() -> None:
    found = sketch("encoder.weight", torch.arange(64 * 64, dtype=torch.float64).reshape(64, 64))
    assert found[:3].tolist() == PINNED


PINNED = [-10614.0, -32466.0, -24188.0]


# -- a copy ----------------------------------------------------------------------------------------------


def test_a_release_is_intact_and_signed(signed: tuple[Path, Path]) -> None:
    folder, public = signed
    verdict = verify(folder, public)
    assert verdict.holds
    assert (verdict.signed, verdict.lock) == (True, "intact")
    assert verify(folder).signed is None


def test_openssl_verifies_the_signature(signed: tuple[Path, Path]) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl")
    folder, public = signed
    command = [openssl, "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(public)]
    command += ["-in", str(folder / "manifest.json"), "-sigfile", str(folder / "manifest.sig")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_manifest_that_was_edited_or_signed_by_another_is_not_the_publishers(
    signed: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, public = signed
    stranger = new_private_key(tmp_path / "stranger.pem")
    assert verify(folder, stranger).signed is False
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["name"] = "another"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    verdict = verify(folder, public)
    assert (verdict.signed, verdict.lock) == (False, "unknown")
    assert str(verdict).startswith("NOT the publisher's manifest: by it nothing can be said")
    assert not verdict.holds
    (folder / "manifest.sig").unlink()
    assert verify(folder, public).signed is False


def test_a_changed_and_a_missing_file_are_named(signed: tuple[Path, Path]) -> None:
    folder, public = signed
    (folder / CARD).write_text("{}")
    (folder / "extra.py").write_text("")
    verdict = verify(folder, public)
    assert (verdict.changed, verdict.missing, verdict.further) == ([CARD], [], ["extra.py"])
    assert verdict.lock == "intact"
    assert not verdict.holds


@pytest.mark.parametrize(
    ("name", "holds"),
    [("adapter_config.json", False), ("code.py", False), ("README.md", True), (".gitattributes", True)],
)
def test_what_could_be_loaded_beside_the_weights_is_not_as_released(
    name: str, holds: bool, signed: tuple[Path, Path]
) -> None:
    (signed[0] / name).write_text("")
    assert verify(*signed).holds is holds


def test_a_link_to_a_folder_is_a_further_file(signed: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (signed[0] / "code").symlink_to(tmp_path / "elsewhere")
    for ask in (lambda: verify(*signed), lambda: describe(signed[0])):
        with pytest.raises(InputError, match="is no file"):
            ask()


def test_another_configuration_is_not_intact(signed: tuple[Path, Path]) -> None:
    """It may have other weights loaded, by transformers' `transformers_weights` for one."""
    (signed[0] / "config.json").write_text((signed[0] / "config.json").read_text() + " ")
    assert verify(*signed).lock != "intact"


def test_what_cannot_be_read_as_a_model_is_said_beside_the_files(signed: tuple[Path, Path]) -> None:
    (signed[0] / WEIGHTS).write_bytes((signed[0] / WEIGHTS).read_bytes()[:-5])
    verdict = verify(*signed)
    assert (verdict.lock, verdict.changed, verdict.signed) == ("unknown", [WEIGHTS], True)
    assert "cannot be read" in str(verdict)


def test_a_copy_in_bf16_carries_the_lock(
    folders: tuple[Path, Path], signed: tuple[Path, Path], tmp_path: Path
) -> None:
    narrow = {name: value.bfloat16() for name, value in load_file(signed[0] / WEIGHTS).items()}
    verdict = verify(copy_with(tmp_path, signed[0], narrow), signed[1], base=folders[0])
    assert verdict.lock == "carried"
    assert not verdict.holds
    assert verdict.sigma_kept == pytest.approx(1, abs=0.01)
    assert verdict.way_back == pytest.approx(0, abs=0.02)
    assert verdict.moved is not None
    assert 0 < verdict.moved < 0.01


@pytest.mark.parametrize(
    ("way", "state"), [(0.05, "carried"), (0.3, "weakened"), (0.8, "gone"), (1.0, "gone")]
)
def test_a_copy_is_placed_between_the_lock_and_the_base(
    way: float, state: str, folders: tuple[Path, Path], signed: tuple[Path, Path], tmp_path: Path
) -> None:
    base, locked = (load_file(folder / WEIGHTS) for folder in folders)
    merged = {name: torch.lerp(locked[name], base[name], way) for name in locked}
    verdict = verify(copy_with(tmp_path, signed[0], merged), base=folders[0])
    assert verdict.lock == state
    assert verdict.way_back == pytest.approx(way, abs=1e-3)


def test_clipping_the_spectrum_is_seen(
    signed: tuple[Path, Path], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """A repair that knows no base: every σ above the third goes down to it."""
    repaired = {}
    for name, W in load_file(signed[0] / WEIGHTS).items():
        if W.ndim >= 2:
            U, S, Vh = torch.linalg.svd(W.flatten(1), full_matrices=False)
            repaired[name] = (U @ torch.diag(S.clamp(max=S[2].item())) @ Vh).reshape(W.shape)
    verdict = verify(copy_with(tmp_path, signed[0], repaired), base=folders[0])
    assert verdict.lock == "gone"
    assert verdict.sigma_kept is not None
    assert verdict.sigma_kept < 0.5


def test_training_on_a_locked_model_leaves_the_lock_and_is_seen(
    folders: tuple[Path, Path], signed: tuple[Path, Path], digits: Task, tmp_path: Path
) -> None:
    model = models.load(signed[0])
    train(model, digits, TrainingRecipe(optimizer="sgd", lr=1e-4, steps=20, batch_size=32))
    models.save(model, tmp_path / "trained")
    verdict = verify(tmp_path / "trained", manifest=signed[0] / "manifest.json", base=folders[0])
    assert verdict.lock == "carried"
    assert verdict.moved is not None
    assert verdict.moved > 0


def test_without_the_base_a_copy_is_not_placed(signed: tuple[Path, Path], tmp_path: Path) -> None:
    narrow = {name: value.bfloat16() for name, value in load_file(signed[0] / WEIGHTS).items()}
    verdict = verify(copy_with(tmp_path, signed[0], narrow))
    assert verdict.lock == "unknown"
    assert verdict.moved is not None


def test_a_manifest_says_nothing_of_the_bases_spectrum(signed: tuple[Path, Path]) -> None:
    """Of a lock that raises σ alone, that would be the key."""
    told = json.loads((signed[0] / "manifest.json").read_text())
    assert all(set(each) == {"shape", "sigma", "sketch"} for each in told["matrices"].values())


def test_one_matrix_that_moved_far_does_not_pay_for_the_others(
    folders: tuple[Path, Path], signed: tuple[Path, Path], tmp_path: Path
) -> None:
    base, locked = (load_file(folder / WEIGHTS) for folder in folders)
    large = max((name for name in base if base[name].ndim == 2), key=lambda name: base[name].numel())
    for far in (-100, 100):
        moved = {**base, large: locked[large] + far * (locked[large] - base[large])}
        verdict = verify(copy_with(tmp_path / str(far), signed[0], moved), base=folders[0])
        assert verdict.lock in ("gone", "unknown")


def test_a_matrix_under_another_prefix_is_compared_and_those_that_are_not_there_are_told(
    folders: tuple[Path, Path], signed: tuple[Path, Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(signed[0], tmp_path / "copy"))
    named = {f"model.{name}": value for name, value in load_file(copy / WEIGHTS).items()}
    save_file(named, copy / WEIGHTS)
    assert verify(copy, base=folders[0]).lock == "carried"
    few = dict(list(named.items())[:2])
    save_file(few, copy / WEIGHTS)
    verdict = verify(copy, base=folders[0])
    assert verdict.lock == "unknown"
    assert verdict.absent


def test_a_matrix_that_is_zero_in_the_base_has_no_rise() -> None:
    told = {"shape": [2, 2], "sketch": list[float]()}
    pair = _Pair("w", {**told, "sigma": 2.0}, {**told, "sigma": 2.0})  # type: ignore[typeddict-item]
    empty: Any = {"matrices": {"w": pair.released}}
    base: Any = {"w": {**told, "sigma": 0.0}}
    assert _judged(Verdict(None, "unknown"), empty, [pair], base).sigma_kept is None


def test_the_base_must_be_the_manifests(signed: tuple[Path, Path], tmp_path: Path) -> None:
    narrow = {name: value.bfloat16() for name, value in load_file(signed[0] / WEIGHTS).items()}
    with pytest.raises(InputError, match="is not the base that the manifest speaks of"):
        verify(copy_with(tmp_path, signed[0], narrow), base=signed[0])


def test_another_model_is_no_copy(signed: tuple[Path, Path], tmp_path: Path) -> None:
    models.save(models.load("bert-l2-h64", labels=("a", "b")), tmp_path / "other")
    verdict = verify(tmp_path / "other", manifest=signed[0] / "manifest.json")
    assert (verdict.lock, verdict.holds) == ("unknown", False)
    assert "shares no weight matrix" in str(verdict)


# -- what is refused -------------------------------------------------------------------------------------


def test_what_is_no_locked_model_is_not_signed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, locked = folders
    with pytest.raises(InputError, match="no lock card"):
        describe(base)
    swapped = Path(shutil.copytree(base, tmp_path / "swapped"))
    shutil.copy(locked / CARD, swapped / CARD)
    with pytest.raises(InputError, match="card of another model"):
        describe(swapped)


def test_a_folder_with_a_key_in_it_is_not_signed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, locked = folders[0], Path(shutil.copytree(folders[1], tmp_path / "locked"))
    new_private_key(tmp_path / "me.pem")
    for make in (
        lambda: shutil.copy(tmp_path / "me.pem", locked / "me.txt"),
        lambda: (
            make_key(base, locked, tmp_path / "key"),
            shutil.copy(tmp_path / "key", locked / "model.key"),
        ),
    ):
        before = set(locked.iterdir())
        make()
        with pytest.raises(InputError, match="is a key, which whoever gets the folder"):
            describe(locked)
        for file in set(locked.iterdir()) - before:
            file.unlink()
    describe(locked)


def test_a_new_key_has_the_password_that_there_is(signed: tuple[Path, Path], tmp_path: Path) -> None:
    new_private_key(tmp_path / "mine.pem", "secret")
    assert "ENCRYPTED" in (tmp_path / "mine.pem").read_text()
    sign(describe(signed[0]), signed[0], tmp_path / "mine.pem", "secret")
    assert verify(signed[0], tmp_path / "mine.pub.pem").holds
    for password in (None, "wrong"):
        with pytest.raises(InputError, match="assword"):
            sign(describe(signed[0]), signed[0], tmp_path / "mine.pem", password)


def test_a_key_of_another_kind_is_refused(signed: tuple[Path, Path], tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    (tmp_path / "ec.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    with pytest.raises(InputError, match="another kind of key"):
        sign(describe(signed[0]), signed[0], tmp_path / "ec.pem")
    with pytest.raises(InputError, match="no private key"):
        sign(describe(signed[0]), signed[0], signed[0] / "config.json")
    with pytest.raises(InputError, match="no such file"):
        verify(signed[0], tmp_path / "nobody.pem")
    with pytest.raises(InputError, match="no public key"):
        verify(signed[0], signed[0] / "config.json")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "Invalid JSON"),
        ("{}", "format"),
        ('{"format": "speclock-manifest/1", "name": 3}', "name"),
        (None, "no such"),
    ],
)
def test_a_manifest_that_is_none_is_refused(
    content: str | None, says: str, signed: tuple[Path, Path]
) -> None:
    (signed[0] / "manifest.json").unlink()
    if content is None:
        os.mkfifo(signed[0] / "manifest.json")  # to open it would wait for ever
    else:
        (signed[0] / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=says):
        verify(signed[0])


# -- the commands ----------------------------------------------------------------------------------------


def test_the_commands_ship_a_model(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, locked = folders[0], Path(shutil.copytree(folders[1], tmp_path / "locked"))
    key, mine, again = tmp_path / "model.key", tmp_path / "me.pem", tmp_path / "again"
    assert main(["key", str(locked), "--base", str(base), "--out", str(key)]) == 0
    assert main(["sign", str(locked), "--private-key", str(locked / "me.pem"), "--new-key"]) == 2
    assert main(["sign", str(locked), "--private-key", str(mine), "--new-key"]) == 0
    public = str(tmp_path / "me.pub.pem")
    assert main(["verify", str(locked), "--public-key", public]) == 0
    assert main(["unlock", str(locked), "--key", str(key), "--out", str(again)]) == 0
    capsys.readouterr()
    manifest = str(locked / "manifest.json")
    asked = ["--public-key", public, "--manifest", manifest, "--base", str(base), "--json"]
    assert main(["verify", str(again), *asked]) == 1
    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["holds"], verdict["signed"], verdict["lock"]) == (False, True, "gone")
    assert verdict["way_back"] == pytest.approx(1, abs=1e-6)
    assert main(["verify", str(base)]) == 2
    assert "--manifest" in capsys.readouterr().err


def test_a_trained_lock_is_shipped_with_its_audit(before: Model, digits: Task, tmp_path: Path) -> None:
    from speclock.audits.record import read
    from speclock.audits.run import audit
    from speclock.audits.suite import QUICK

    made = SpecDef(steps=3, evaluations=1, max_utility_drop=1.0)(before, digits)
    models.save(made.model, tmp_path / "locked", extra={CARD: json.dumps(made.card)})
    few = tasks.load("kmnist@64/64/64")
    suite = QUICK.__class__(name="one", version=1, steps=2, families=QUICK.families[:1], extended=False)
    record = audit(base=before, locked=made, retain=digits, attack=few, suite=suite, repeat=False)
    (tmp_path / "audit").mkdir()
    record.save(tmp_path / "audit")
    told = describe(tmp_path / "locked", audit=tmp_path / "audit")
    assert told["audit"]["verdict"] == read(tmp_path / "audit").verdict
    assert told["audit"]["attack_task"] == record.attack_task["name"]
    record.locked["fingerprint"] = "0" * 64
    record.save(tmp_path / "audit")
    with pytest.raises(InputError, match="audit of another model"):
        describe(tmp_path / "locked", audit=tmp_path / "audit")
