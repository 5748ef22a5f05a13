"""Checkpoints: what was saved comes back on any number of ranks, and damage is noticed."""

from __future__ import annotations

import inspect
import json
import math
import os
import pickle
import random
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint
from torch import Tensor, nn

import reweight
from _support.processes import Processes, values
from reweight import checkpoint
from reweight.checkpoint import saving

FILES = {".metadata", "__0_0.distcp", "manifest.json", "state.json"}


class Training:
    """A model, a weighter, both optimizers, a sampler and a random generator, all in float64."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        self.weighter = reweight.LossWeighter().double()
        self.inner = torch.optim.AdamW(self.model.parameters(), lr=0.05, weight_decay=0.1)
        self.outer = torch.optim.Adam(self.weighter.parameters(), lr=0.05)
        self.rw = reweight.wrap(
            self.model,
            self.weighter,
            lambda model, batch: (model(batch[0]).squeeze(-1) - batch[1]).square(),
            lambda model, batch: (model(batch[0]).squeeze(-1) - batch[1]).square().mean(),
            optimizer=self.inner,
            # Each rank takes all samples, so that the step does not depend on how many they are.
            process_group=None,
        )
        self.x, self.y = torch.randn(30, 3).double(), torch.randn(30).double()
        self.sampler = reweight.ReorderReuseSampler(30, 7, seed=1)
        self.generator = torch.Generator().manual_seed(3)
        self.pairs = iter(self.sampler)

    def step(self) -> None:
        train, dev = next(self.pairs)
        noise = torch.randn(len(train), generator=self.generator, dtype=torch.float64)
        batch = self.x[train], self.y[train] + noise
        self.inner.zero_grad()
        self.rw.loss(batch).backward()
        self.inner.step()
        self.outer.zero_grad()
        self.rw.outer_backward(batch, (self.x[dev], self.y[dev]))
        self.outer.step()

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "weighter": self.rw.state_dict(),
            "inner": self.inner.state_dict(),
            "outer": self.outer.state_dict(),
            "sampler": self.sampler.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.rw.load_state_dict(state["weighter"])
        self.inner.load_state_dict(state["inner"])
        self.outer.load_state_dict(state["outer"])
        self.sampler.load_state_dict(state["sampler"])
        self.generator.set_state(state["generator"])
        self.pairs = iter(self.sampler)


def equal(one: Any, other: Any) -> bool:
    """Whether two nested values agree in types, keys, order and every bit of their tensors."""
    if isinstance(one, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return same and torch.equal(
            one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and all(map(equal, one, other)) and len(one) == len(other)
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and repr(one) == repr(other)


# -- one process -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three tensors."""
    folder = tmp_path_factory.mktemp("checkpoints") / "saved"
    checkpoint.save({"a": torch.arange(6.0), "b": [torch.ones(2, 3), 1.5], "n": 7}, folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    copy = tmp_path / "saved"
    copy.mkdir()
    for file in saved.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = {
        "tensors": [
            torch.tensor([math.nan, -0.0, 1e-310], dtype=torch.float64),
            torch.randn(2, 3).bfloat16(),
            torch.zeros(0, 4, dtype=torch.int64),
            torch.tensor(True),
            torch.randn(5, 2)[::2],  # a view, with gaps
            torch.arange(6).view(2, 3).t(),
        ],
        "numbers": (1, 2**200, -0.0, 0.1, math.inf, -math.inf, math.nan, True, None, "é/\n"),
        3: {0: {}, "0": [], 1.5: ()},
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
    }
    checkpoint.save(state, tmp_path / "one")
    assert equal(checkpoint.load(tmp_path / "one"), state)
    assert set(os.listdir(tmp_path / "one")) == FILES
    assert os.listdir(tmp_path) == ["one"]


def test_optimizers_that_have_not_stepped_have_states_too(tmp_path: Path) -> None:
    fresh = Training()
    checkpoint.save(fresh.state(), tmp_path / "one")
    other = Training()
    other.step()
    other.load(checkpoint.load(tmp_path / "one"))
    assert equal(other.state(), fresh.state())


def test_tensors_go_where_those_of_like_are(folder: Path) -> None:
    like = {"a": torch.zeros(6, requires_grad=True), "b": [None, 0], "more": torch.zeros(1)}
    found = checkpoint.load(folder, like)
    assert equal(found["a"], torch.arange(6.0)) and not like["a"].any()
    assert equal(found, checkpoint.load(folder))
    for other in (torch.zeros(5), torch.zeros(6, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"like.*a is .*\[6\] of torch.float32"):
            checkpoint.load(folder, {"a": other})


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_flipped_bit_is_noticed(folder: Path, name: str) -> None:
    content, whole = (folder / name).read_bytes(), checkpoint.load(folder)
    rng = random.Random(0)
    for place in rng.sample(range(len(content)), min(len(content), 60)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(flipped)
        try:
            found = checkpoint.load(folder)
        except ValueError as error:
            assert str(folder) in str(error) and "load an older one" in str(error)
        else:
            # White space of the manifest, which has no checksum of its own.
            assert name == "manifest.json" and equal(found, whole)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_noticed(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing|no {name}"):
        checkpoint.load(folder)


@pytest.mark.parametrize("add", [Path.touch, Path.mkdir], ids=["file", "folder"])
def test_what_was_added_is_noticed(folder: Path, add: Callable[[Path], None]) -> None:
    add(folder / "__1_0.distcp")
    with pytest.raises(ValueError, match="__1_0.distcp was added"):
        checkpoint.check(folder)


def test_a_shortened_file_is_noticed(folder: Path) -> None:
    data = folder / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ValueError, match="__0_0.distcp has .* bytes"):
        checkpoint.load(folder)


class Harmful:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_no_pickle_is_run_even_if_the_manifest_agrees_with_it(folder: Path, tmp_path: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    _sign(folder)
    checkpoint.check(folder)
    with pytest.raises(ValueError, match="metadata.*mkdir"):
        checkpoint.load(folder)
    assert not (tmp_path / "harm").exists()


def _sign(folder: Path) -> None:
    """Make the manifest agree with the files."""
    told = json.loads((folder / "manifest.json").read_text())
    for name, entry in told["files"].items():
        content = (folder / name).read_bytes()
        entry.update(sha256=sha256(content).hexdigest(), size=len(content))
    (folder / "manifest.json").write_text(json.dumps(told))


@pytest.mark.parametrize("moment", ["write", "entries", "rename"])
def test_an_interrupted_save_leaves_the_earlier_checkpoint(
    folder: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    before, rename = checkpoint.load(folder), Path.rename
    with monkeypatch.context() as patch:
        if moment == "rename":  # of the complete folder; the earlier one has moved aside
            patch.setattr(
                Path,
                "rename",
                lambda a, b: interrupted() if b == folder else rename(a, b),
            )
        else:
            where = saving.storage if moment == "write" else saving.manifest
            patch.setattr(where, moment, interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save({"a": torch.zeros(9)}, folder)
    assert equal(checkpoint.load(folder), before)
    checkpoint.save({"a": torch.zeros(9)}, folder)
    assert equal(checkpoint.load(folder), {"a": torch.zeros(9)})
    assert os.listdir(folder.parent) == [folder.name]


def test_what_is_not_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="left as it is"):
        checkpoint.save({}, tmp_path)
    with pytest.raises(ValueError, match="manifest.json"):
        checkpoint.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        checkpoint.load(tmp_path / "nowhere")
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"rng": {"keys": torch.zeros(3).numpy()}}, r"\['rng'\]\['keys'\].*ndarray"),
        ([1, {2, 3}], r"\[1\].*set"),
        ({(1, 2): 3}, "tuple"),
        ({"t": torch.eye(3).to_sparse()}, r"\['t'\].*sparse"),
    ],
)
def test_what_cannot_be_saved_is_named(value: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=told):
        checkpoint.save(value, tmp_path / "one")
    assert not os.listdir(tmp_path)


def test_a_disk_that_is_full_is_an_error_of_the_operating_system(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    before = checkpoint.load(folder)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"saved.partial.*No space left"):
            checkpoint.save({"a": torch.zeros(9)}, folder)
    assert equal(checkpoint.load(folder), before)


# -- several processes -----------------------------------------------------------------------------


def save_halfway(rank: int, size: int, folder: Path) -> Any:
    """Save after three steps of four, and take the fourth."""
    training = Training()
    for _ in range(3):
        training.step()
    checkpoint.save(training.state(), folder / "training")
    checkpoint.save(shards(), folder / "shards")
    training.step()
    return _comparable(training.state())


def load_and_step(rank: int, size: int, folder: Path) -> Any:
    """Load what the others saved, and take the fourth step."""
    training = Training()
    training.load(checkpoint.load(folder / "training"))
    training.step()
    state = checkpoint.load(folder / "shards", shards(0.0))
    assert type(state["table"]) is type(shards()["table"])
    own = state["table"].to_local() if dist.is_initialized() else state["table"]
    return _comparable(training.state()), own.tolist()


def _comparable(state: dict[str, Any]) -> Any:
    """All but how often second derivatives were looked at, which a new process does once more."""
    weighter = {key: value for key, value in state["weighter"].items() if key != "audit"}
    return _for_the_queue({**state, "weighter": weighter})


def shards(scale: float = 1.0) -> dict[str, Any]:
    """A table whose rows lie on the ranks in turn; 7 of them, which divides by neither 2 nor 3."""
    table = scale * torch.arange(14.0).view(7, 2)
    if not dist.is_initialized():
        return {"table": table}
    from torch.distributed.device_mesh import init_device_mesh

    try:
        from torch.distributed.tensor import Shard, distribute_tensor
    except ImportError:  # its place before torch 2.5
        from torch.distributed._tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {"table": distribute_tensor(table, mesh, [Shard(0)])}


def _for_the_queue(value: Any) -> Any:
    """Tensors as bytes: a tensor itself would be shared with a process that has ended."""
    if isinstance(value, Tensor):
        return (str(value.dtype), list(value.shape), value.numpy().tobytes())
    if isinstance(value, dict):
        return {key: _for_the_queue(entry) for key, entry in value.items()}
    return [_for_the_queue(e) for e in value] if isinstance(value, (list, tuple)) else value


@pytest.fixture(scope="module")
def halfway(two: Processes, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """What two ranks saved after three steps, and their state after the fourth."""
    folder = tmp_path_factory.mktemp("halfway")
    one, other = values(two.run(save_halfway, folder))
    assert one == other
    return folder, one


def test_several_ranks_write_a_part_each(halfway: tuple[Path, Any]) -> None:
    names = {path.name for path in (halfway[0] / "training").iterdir()}
    assert {"__0_0.distcp", "__1_0.distcp"} < names
    assert not [path for path in halfway[0].iterdir() if "." in path.name]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3])
def test_two_ranks_save_and_any_number_takes_the_same_next_step(
    halfway: tuple[Path, Any], two: Processes, size: int, tmp_path: Path
) -> None:
    folder, after = halfway
    if size == 1:
        found = [load_and_step(0, 1, folder)]
    elif size == 2:
        found = values(two.run(load_and_step, folder))
    else:
        three = Processes(3, tmp_path)
        try:
            found = values(three.run(load_and_step, folder))
        finally:
            three.close()
    assert all(state == after for state, _ in found)
    rows = [row for _, part in found for row in part]
    assert rows == shards()["table"].tolist()


def each_fails(rank: int, size: int, folder: Path) -> list[str]:
    """What is said on this rank where one of the ranks has the trouble."""
    told: list[str] = []
    damaged = folder / "damaged"
    checkpoint.save({"a": torch.zeros(1000), "b": torch.ones(1000)}, damaged)
    if rank == 0:
        # The last file in the order of names is checked by the other rank.
        (damaged / "__1_0.distcp").write_bytes(b"")
        (folder / "taken").write_text("")
    dist.barrier()
    for attempt in (
        lambda: checkpoint.save({"rank": rank}, folder / "differing"),
        lambda: checkpoint.save({}, folder / "taken"),
        lambda: checkpoint.load(damaged),
        lambda: checkpoint.check(damaged),
    ):
        try:
            attempt()
            told.append("nothing")
        except (ValueError, OSError) as error:
            told.append(f"{type(error).__name__} {error}")
    try:
        checkpoint.save({"rank": rank}, folder / f"own-{rank}", process_group=None)
    except RuntimeError as error:
        return [*told, str(error)]
    return [*told, str(checkpoint.load(folder / f"own-{rank}", process_group=None))]


def test_trouble_of_one_rank_is_an_error_on_all(two: Processes, tmp_path: Path) -> None:
    one, other = values(two.run(each_fails, tmp_path))
    assert one[:-1] == other[:-1]
    if "no_dist" in inspect.signature(torch.distributed.checkpoint.save).parameters:
        assert (one[-1], other[-1]) == ("{'rank': 0}", "{'rank': 1}")
    else:  # an older torch can't leave the other processes out
        assert "use a newer torch" in one[-1]
    assert "differs between rank 0 and rank 1" in one[0]
    assert one[1].startswith("FileExistsError") and "left as it is" in one[1]
    assert "__1_0.distcp has 0 bytes" in one[2] and one[2] == one[3]
