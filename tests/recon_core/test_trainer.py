import copy
import math

import pytest
import torch
from torch import nn

from recon_core.priors.prior import Convention
from recon_core.priors.unet import UNet, UNetConfig
from recon_core.training.augmentation import Augmentation
from recon_core.training.corpus import Corpus
from recon_core.training.trainer import Settings, Trainer, noise_levels, schedule

CONVENTION = Convention("maximum", 0.01, 10.0)
AS_THEY_ARE = Augmentation(smallest=1.0, contrast=0.0, gain=1.0)
SIGNAL, NOISE = 0.5, 0.1


class Stopped(Exception):
    pass


def corpus(count=6, edge=20, noise=NOISE, seed=0, signal=SIGNAL):
    """White Gaussian images, with noise in them."""
    images = torch.randn(count, edge, edge, 2, generator=torch.Generator().manual_seed(seed))
    spread = math.hypot(signal, noise)
    return Corpus([(spread * image).half() for image in images], torch.full((count,), noise))


def settings(**changes):
    return Settings(**{"steps": 10, "rate": 1e-2, "edges": (8, 16), "pixels": 512, **changes})


def network(*channels, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet(UNetConfig(channels or (4, 8)))


def trainer(chosen=None, model=None, convention=CONVENTION, constrain=None):
    model = model or network()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1.0)
    return Trainer(model, optimiser, convention, chosen or settings(), constrain)


class Wiener(nn.Module):
    """The best denoiser of white images, but for not knowing their standard deviation."""

    def __init__(self, spread):
        super().__init__()
        self.spread = nn.Parameter(torch.tensor(spread))

    def forward(self, image, sigma):
        variance, level = self.spread**2, sigma[:, None, None, None] ** 2
        return variance / (variance + level) * image

    def weight(self, sigma):
        return (sigma**2 + SIGNAL**2) / (sigma * SIGNAL) ** 2


def stop_after(steps):
    """A constraint that ends the training in the midst of a step, as a user would."""
    calls = []

    def constrain(_):
        calls.append(None)
        if len(calls) > 2 * steps:  # once for the network, once for the average
            raise Stopped

    return constrain


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The checkpoint of a finished training, and the training; its curve has every step."""
    path, finished = tmp_path_factory.mktemp("training") / "checkpoint", trainer()
    finished.run(corpus(), corpus(2, seed=1), path, every=1)
    return path, finished


@pytest.mark.parametrize(("stop", "objective"), [(3, "clean"), (5, "sure")])
def test_a_resumed_training_is_the_same_to_the_bit(tmp_path, objective, stop):
    images, held_out = corpus(), corpus(2, seed=1)
    chosen = settings(objective=objective)
    whole = trainer(chosen)
    whole.run(images, held_out, tmp_path / "whole", every=3)
    with pytest.raises(Stopped):
        trainer(chosen, constrain=stop_after(stop)).run(images, held_out, tmp_path / "parts", every=3)
    resumed = trainer(chosen, network(seed=9))
    resumed.run(images, held_out, tmp_path / "parts", every=3)
    for ours, theirs in ((resumed.network, whole.network), (resumed.averaged, whole.averaged)):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name
    assert resumed.curve == whole.curve
    assert whole.curve.step == [3, 6, 9, 10]


def test_a_finished_training_is_only_read(finished):
    path, first = finished
    again = trainer(model=network(seed=9), constrain=stop_after(0))
    again.run(corpus(), corpus(2, seed=1), path)
    for name, tensor in again.averaged.state_dict().items():
        assert torch.equal(tensor, first.averaged.state_dict()[name])
    assert again.curve == first.curve


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chosen": settings(rate=2e-2)}, "rate 0.01, not 0.02. Delete it to start anew, or give another output"),
        ({"chosen": settings(seed=2, steps=9)}, "steps 10, not 9; seed 1, not 2. Delete"),
        ({"chosen": settings(augmentation=AS_THEY_ARE)}, "augmentation Augmentation.*, not Augmentation.*. Delete"),
        ({"chosen": settings(start="head_unet")}, "start None, not 'head_unet'. Delete"),
        ({"convention": Convention("maximum", 0.02, 10.0)}, "convention .*0.01.*, not .*0.02.*. Delete"),
        ({"model": network(4, 6)}, r"network .*\(4, 8\).*, not .*\(4, 6\)"),
        # Another configuration may need the same tensors.
        ({"model": UNet(UNetConfig((4, 8), signal=0.5))}, "network .*signal=0.35.*, not .*signal=0.5"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(finished, changed, message):
    with pytest.raises(ValueError, match=f"checkpoint is of another training: {message}"):
        trainer(**changed).run(corpus(), corpus(2, seed=1), finished[0])


@pytest.mark.parametrize("other", [corpus(5), corpus(seed=3), corpus(noise=0.0, signal=math.hypot(SIGNAL, NOISE))])
def test_the_checkpoint_of_other_images_is_refused(finished, other):
    path, _ = finished
    with pytest.raises(ValueError, match="another training: training images 6 with .*, not . with"):
        trainer().run(other, corpus(2, seed=1), path)
    with pytest.raises(ValueError, match="another training: validation images 2 with .*, not . with"):
        trainer().run(corpus(), other, path)


def test_the_checkpoint_of_another_version_is_refused(finished, tmp_path):
    path = tmp_path / "checkpoint"
    state = torch.load(finished[0])
    torch.save({**state, "told": {"settings": "of another kind"}}, path)
    with pytest.raises(ValueError, match="another training: .*rate not told, not 0.01; .*Delete it"):
        trainer().run(corpus(), corpus(2, seed=1), path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "checkpoint"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="checkpoint is not a checkpoint"):
        trainer().run(corpus(), corpus(2, seed=1), path)
    torch.save({"network": network().state_dict()}, path)
    with pytest.raises(ValueError, match="checkpoint is not the checkpoint of a training"):
        trainer().run(corpus(), corpus(2, seed=1), path)
    torch.save({"told": {}, "network": network()}, path)
    with pytest.raises(ValueError, match="pickled Python objects"):
        trainer().run(corpus(), corpus(2, seed=1), path)


def test_a_full_disk_leaves_the_checkpoint_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"
    whole = trainer()
    whole.run(corpus(), corpus(2, seed=1), tmp_path / "whole", every=4)

    def save_half(state, target):
        target.write_bytes(b"half")
        raise OSError("no space left")

    save = torch.save
    monkeypatch.setattr(torch, "save", lambda state, target: (save_half if path.exists() else save)(state, target))
    with pytest.raises(OSError, match="no space"):
        trainer().run(corpus(), corpus(2, seed=1), path, every=4)
    monkeypatch.undo()
    resumed = trainer()
    resumed.run(corpus(), corpus(2, seed=1), path, every=4)
    assert resumed.curve == whole.curve


def test_the_curve_holds_mean_losses(finished, tmp_path):
    some, losses = trainer(), finished[1].curve.loss
    some.run(corpus(), corpus(2, seed=1), tmp_path / "some", every=4)
    assert some.curve.loss == pytest.approx([sum(losses[:4]) / 4, sum(losses[4:8]) / 4, sum(losses[8:]) / 2])


def test_the_curve_holds_mean_losses_after_a_resume_with_another_rhythm(finished, tmp_path):
    with pytest.raises(Stopped):
        trainer(constrain=stop_after(5)).run(corpus(), corpus(2, seed=1), tmp_path / "parts", every=4)
    resumed = trainer()
    resumed.run(corpus(), corpus(2, seed=1), tmp_path / "parts", every=3)
    losses = finished[1].curve.loss
    assert resumed.curve.step == [4, 6, 9, 10]
    assert resumed.curve.loss == pytest.approx(
        [sum(losses[:4]) / 4, sum(losses[4:6]) / 2, sum(losses[6:9]) / 3, losses[9]]
    )


def test_validation_is_on_the_same_noisy_patches_throughout(tmp_path):
    still = trainer(settings(rate=0.0))
    still.run(corpus(), corpus(2, seed=1), tmp_path / "checkpoint", every=2)
    assert len(set(still.curve.validation)) == 1
    assert len(set(still.curve.loss)) == 5


@pytest.mark.parametrize("objective", ["clean", "sure"])
def test_the_optimum_is_found(tmp_path, monkeypatch, objective):
    """One number to learn, the standard deviation of white images; at it the weighted loss is one."""
    monkeypatch.setattr("recon_core.training.trainer.KEEPS_NOISE", AS_THEY_ARE)
    # With noise, only levels above it: below, the denoised images stand in for clean ones.
    above = Convention("maximum", 1.2 * NOISE, 1.0)
    monkeypatch.setattr(
        "recon_core.training.trainer.noise_levels", lambda count, _, generator: noise_levels(count, above, generator)
    )
    images = corpus(8, 64, noise=NOISE if objective == "sure" else 0.0)
    held_out = corpus(4, 64, noise=0.0, seed=1)
    chosen = settings(
        objective=objective,
        steps=200,
        rate=0.03,
        edges=(32,),
        pixels=16 * 32**2,
        average=0.9,
        augmentation=AS_THEY_ARE,
    )
    learning = trainer(chosen, Wiener(1.5))
    learning.run(images, held_out if objective == "clean" else images, tmp_path / "checkpoint", every=20)
    assert float(learning.averaged.spread) == pytest.approx(SIGNAL, rel=0.02)
    assert learning.curve.validation[-1] < learning.curve.validation[0]
    if objective == "clean":
        assert learning.curve.validation[-1] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("slow", [0.999, 0.3])
def test_the_average_of_the_weights(tmp_path, slow):
    model, weights = network(), []
    weights.append(copy.deepcopy(model.state_dict()))

    def keep(changed):
        if changed is model:
            weights.append(copy.deepcopy(model.state_dict()))

    learning = trainer(settings(average=slow), model, constrain=keep)
    learning.run(corpus(), corpus(2, seed=1), tmp_path / "checkpoint")
    assert len(weights) == 11
    for name, averaged in learning.averaged.state_dict().items():
        expected = weights[0][name].double()
        for step, new in enumerate(weights[1:]):
            decay = min(slow, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * new[name]
        torch.testing.assert_close(averaged.double(), expected, rtol=1e-5, atol=1e-6)


def test_constraints_hold_for_weights_and_average(tmp_path):
    def clamp(changed):
        with torch.no_grad():
            changed.spread.clamp_(1.48, 1.52)

    learning = trainer(settings(rate=0.1), Wiener(1.5), constrain=clamp)
    learning.run(corpus(), corpus(2, seed=1), tmp_path / "checkpoint")
    assert float(learning.network.spread.detach()) == pytest.approx(1.48)
    assert 1.48 <= float(learning.averaged.spread) < 1.5


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda image, spread: image * math.nan + spread, "diverged: loss nan"),
        # Finite, but not so its derivative.
        (lambda image, spread: image + (0 * spread).sqrt(), "diverged: loss [0-9.]+, gradient (nan|inf)"),
    ],
)
def test_a_training_that_diverges_is_stopped_before_it_spoils_the_weights(tmp_path, broken, message):
    class Broken(Wiener):
        def forward(self, image, sigma):
            return broken(image, self.spread)

    model = Broken(0.7)
    with pytest.raises(ValueError, match=message + ".* at step 0"):
        trainer(model=model).run(corpus(), corpus(2, seed=1), tmp_path / "checkpoint", every=1)
    assert float(model.spread.detach()) == pytest.approx(0.7)
    assert not list(tmp_path.iterdir())


def test_the_noise_of_the_images_reaches_the_loss(tmp_path):
    seen = []

    class Watched(Wiener):
        def weight(self, sigma):
            seen.append(sigma)
            return super().weight(sigma)

    trainer(settings(objective="sure", steps=1, pixels=16 * 32**2), Watched(0.5)).run(
        corpus(), corpus(2, seed=1), tmp_path / "c"
    )
    # Patches are multiplied by gains of up to 1.25, and their noise with them.
    stein = seen[0]
    assert all(0.8 * NOISE <= level <= 1.25 * NOISE for level in stein.tolist())
    assert stein.unique().numel() > 1


@pytest.mark.parametrize(("levels", "count"), [(None, 8), (3, 3), (20, 8)])
def test_a_batch_holds_as_many_levels_as_asked_for(tmp_path, levels, count):
    seen = []

    class Watched(Wiener):
        def forward(self, image, sigma):
            seen.append((len(image), sigma.unique().numel()))
            return super().forward(image, sigma)

    chosen = settings(steps=1, levels=levels, edges=(8,))
    trainer(chosen, Watched(0.5)).run(corpus(), corpus(2, seed=1), tmp_path / "checkpoint")
    assert set(seen) == {(8, count)}


def test_without_images_or_noise_nothing_can_be_learnt(tmp_path):
    none = Corpus([])
    with pytest.raises(ValueError, match="train on and to validate by, got 6 and 0"):
        trainer().run(corpus(), none, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="got 0 and 6"):
        trainer().run(none, corpus(), tmp_path / "checkpoint")


@pytest.mark.parametrize("noise", [0.0, 0.005, 11.0])
def test_noise_beyond_what_the_prior_learns_is_refused_at_once(tmp_path, noise):
    for images, held_out in ((corpus(noise=noise), corpus()), (corpus(), corpus(noise=noise))):
        with pytest.raises(ValueError, match=rf"noise is 0.01 to 10 of the maximum of each, got .*\b{noise:g}\b"):
            trainer(settings(objective="sure")).run(images, held_out, tmp_path / "checkpoint")


def test_the_rate_rises_for_a_hundredth_and_falls_as_a_cosine():
    assert schedule(0.0) == pytest.approx(0.01, rel=1e-3)
    assert schedule(0.01) == pytest.approx(1, abs=1e-3)
    assert schedule(0.5) == pytest.approx(0.5)
    assert schedule(0.75) == pytest.approx(0.5 * (1 - math.sqrt(0.5)))
    assert schedule(1.0) == pytest.approx(0)
    falling = [schedule(step / 100) for step in range(1, 101)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("convention", [CONVENTION, Convention("maximum", 0.3, 0.4), Convention("maximum", 5, 160)])
def test_noise_levels_stay_within_the_convention(convention):
    levels = noise_levels(10_000, convention, torch.Generator().manual_seed(0))
    assert (
        convention.lowest * (1 - 1e-6) <= float(levels.min()) <= float(levels.max()) <= convention.highest * (1 + 1e-6)
    )


def test_most_noise_levels_lie_about_a_tenth_and_the_others_anywhere():
    levels = noise_levels(200_000, Convention("percentile99", 1e-4, 1e4), torch.Generator().manual_seed(0)).log()

    def share(low, high):
        often = 0.5 * (math.erf((high + 2.5) / 1.4 / math.sqrt(2)) - math.erf((low + 2.5) / 1.4 / math.sqrt(2)))
        return 0.7 * often + 0.3 * (high - low) / math.log(1e8)

    for low, high in ((-8, -6), (-4, -3), (-2.5, -1.5), (-1, 0), (3, 9)):
        found = float(((levels > low) & (levels < high)).float().mean())
        assert found == pytest.approx(share(low, high), abs=0.004)
