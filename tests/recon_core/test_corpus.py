import nibabel
import numpy as np
import pytest
import torch

from recon_core.priors.prior import Convention
from recon_core.training.corpus import Corpus, hold_out, read_corpus
from recon_core.training.image_files import ImageFileError

PERCENTILE, MAXIMUM = Convention("percentile99", 0.01, 10), Convention("maximum", 0.01, 10)


def heads(*shape, dtype=np.float64, seed=0):
    """Bright discs with some texture in air."""
    rng = np.random.default_rng(seed)
    y, x = (np.linspace(-1, 1, n) for n in shape[-2:])
    disc = np.hypot(y[:, None], x) < 0.8
    return (disc * rng.uniform(100, 900, shape)).astype(dtype)


def stored(path, **arrays):
    np.savez(path, **arrays)
    return path


def one(path, convention=PERCENTILE, **options):
    (corpus,) = read_corpus([path], convention, **options)
    return corpus


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.float64])
def test_images_are_on_the_unit_scale(tmp_path, dtype):
    values = heads(3, 40, 50, dtype=dtype)
    corpus = one(stored(tmp_path / "heads.npz", images=values))
    assert len(corpus) == 3
    for k in range(3):
        magnitude = corpus[k]
        assert magnitude.dtype == torch.float32
        assert float(np.percentile(magnitude, 99)) == pytest.approx(1, abs=0.01)
        scale = np.percentile(values[k], 99)
        np.testing.assert_allclose(magnitude, values[k] / scale, rtol=0.01)


def test_every_slice_has_its_own_scale(tmp_path):
    values = heads(2, 40, 50) * np.array([1, 3])[:, None, None]
    corpus = one(stored(tmp_path / "heads.npz", images=values), MAXIMUM)
    for k in range(2):
        assert float(corpus[k].max()) == pytest.approx(1, rel=1e-3)


def test_complex_images_keep_their_phase_and_are_scaled_by_their_magnitude(tmp_path):
    values = (heads(1, 40, 50) * np.exp(1.2j)).astype(np.complex64)
    corpus = one(stored(tmp_path / "heads.npz", images=values), MAXIMUM)
    assert corpus[0].dtype == torch.complex64
    np.testing.assert_allclose(corpus[0], values[0] / np.abs(values).max(), atol=1e-3)


def test_noise_is_scaled_as_the_images_are(tmp_path):
    values = heads(2, 40, 50) * np.array([1, 3])[:, None, None] + 0j
    path = stored(tmp_path / "heads.npz", images=values)
    peaks = torch.from_numpy(np.abs(values).max((1, 2))).float()
    torch.testing.assert_close(one(path, MAXIMUM, noise=20.0).noise, 20 / peaks)
    assert torch.equal(one(path, MAXIMUM).noise, torch.zeros(2))


def test_noise_is_estimated_in_the_units_of_the_scaled_images(tmp_path):
    rng = np.random.default_rng(1)
    values = np.full((2, 128, 128), 50.0) * np.array([1, 3])[:, None, None]
    values = values + 2 * (rng.standard_normal(values.shape) + 1j * rng.standard_normal(values.shape))
    corpus = one(stored(tmp_path / "heads.npz", images=values), MAXIMUM, noise=None)
    expected = 2 / np.abs(values).max((1, 2))
    np.testing.assert_allclose(corpus.noise, expected, rtol=0.05)


def test_magnitudes_have_no_gaussian_noise(tmp_path):
    path = stored(tmp_path / "heads.npz", images=heads(2, 40, 50))
    for noise in (2.0, None):
        with pytest.raises(ImageFileError, match=r"heads.npz: expected complex images, got magnitudes"):
            one(path, noise=noise)


def test_empty_slices_are_left_out(tmp_path):
    values = heads(6, 40, 50)
    values[1] = 0
    values[3] = np.random.default_rng(0).uniform(0, 30, (40, 50))  # only noise
    values[4, 4:] = 0  # hardly anything
    corpus = one(stored(tmp_path / "heads.npz", images=values), MAXIMUM)
    assert len(corpus) == 3
    for image, kept in zip((corpus[k] for k in range(3)), (0, 2, 5), strict=True):
        np.testing.assert_allclose(image, values[kept] / values[kept].max(), atol=1e-3)


def test_a_file_of_empty_slices_is_left_out_but_not_all_of_them(tmp_path):
    stored(tmp_path / "a.npz", images=np.zeros((2, 40, 50)))
    with pytest.raises(ImageFileError, match="fills 5% of a slice and more, found only emptier slices in .*a.npz"):
        read_corpus([tmp_path], PERCENTILE)
    stored(tmp_path / "b.npz", images=heads(2, 40, 50))
    assert [len(corpus) for corpus in read_corpus([tmp_path], PERCENTILE)] == [0, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [(0, 0, 0), (2, 20, 20)])
def test_values_that_are_not_finite_are_named(tmp_path, bad, where):
    values = heads(3, 40, 50)
    values[where] = bad
    with pytest.raises(ImageFileError, match="heads.npz: holds values that are not finite"):
        one(stored(tmp_path / "heads.npz", images=values))


def test_images_with_signs_are_no_magnitudes(tmp_path):
    phase = np.random.default_rng(0).uniform(-np.pi, np.pi, (2, 40, 50))
    with pytest.raises(
        ImageFileError, match=r"phase.npz: expected magnitudes or complex images, got values down to -3"
    ):
        one(stored(tmp_path / "phase.npz", images=phase))
    # What interpolation leaves about edges is none.
    rung = heads(2, 40, 50)
    rung[:, 0] = -20
    assert len(one(stored(tmp_path / "rung.npz", images=rung))) == 2


def test_a_spike_is_named(tmp_path):
    values = heads(1, 40, 50)
    values[0, 20, 20] = 1e9
    with pytest.raises(ImageFileError, match="spike.npz: some pixels are over 65504 times as bright as the others"):
        one(stored(tmp_path / "spike.npz", images=values))


def test_one_array_by_its_name(tmp_path):
    path = stored(tmp_path / "heads.npz", train=heads(4, 40, 50), val=heads(2, 40, 50))
    assert len(one(path)) == 6
    assert len(one(path, key="val")) == 2


def test_files_of_all_kinds_together(tmp_path):
    stored(tmp_path / "a.npz", images=heads(2, 40, 50))
    np.save(tmp_path / "b.npy", heads(60, 33, seed=1))
    volume = nibabel.Nifti1Image(heads(3, 36, 48).T, np.diag([1, 1, 4, 1]))
    nibabel.save(volume, tmp_path / "c.nii.gz")
    corpora = read_corpus([tmp_path], PERCENTILE)
    assert [len(corpus) for corpus in corpora] == [2, 1, 3]
    assert [tuple(corpus[0].shape) for corpus in corpora] == [(40, 50), (60, 33), (36, 48)]


def numbered(*numbers):
    return Corpus([torch.full((2, 2), float(n)).half() for n in numbers], torch.tensor(numbers) / 10)


def numbers(corpus):
    return [float(corpus[k][0, 0]) for k in range(len(corpus))]


def test_corpora_add_up():
    both = numbered(1, 2) + numbered(7)
    assert numbers(both) == [1, 2, 7]
    torch.testing.assert_close(both.noise, torch.tensor([0.1, 0.2, 0.7]))


def test_a_run_of_slices_is_split_off():
    kept, held = numbered(*range(20)).split(slice(5, 8))
    assert numbers(kept) == [*range(5), *range(8, 20)]
    assert numbers(held) == [5, 6, 7]
    torch.testing.assert_close(held.noise, torch.tensor([0.5, 0.6, 0.7]))
    torch.testing.assert_close(kept.noise, torch.tensor(numbers(kept)) / 10)


def files(*sizes):
    """Corpora whose images are numbered throughout."""
    ends = np.cumsum(sizes).tolist()
    return [numbered(*range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize(
    ("sizes", "held"),
    [
        ((60,), [28, 29, 30]),
        ((4,), [1]),
        ((3, 2), [0, 1, 2]),
        ((3, 2, 4), [3, 4]),
        ((1,) * 7, [3]),
        ((1,) * 60, [28, 29, 30]),
        ((3, 0, 2, 0), [0, 1, 2]),  # a file of empty slices is none
        ((0, 40, 0), [19, 20]),
    ],
)
def test_the_middle_twentieth_of_files_or_of_a_single_one_is_held_out(sizes, held):
    kept, held_out = hold_out(files(*sizes))
    assert numbers(held_out) == held
    assert numbers(kept) == [n for n in range(sum(sizes)) if n not in held]


@pytest.mark.parametrize("size", [1e200, 1e-60])
def test_files_beyond_single_precision_are_named(tmp_path, size):
    with pytest.raises(ImageFileError, match=r"odd.npz: (expected values of single precision|an image that is zero)"):
        one(stored(tmp_path / "odd.npz", images=size * heads(2, 40, 50)))


def test_a_file_with_a_tiny_object_is_named(tmp_path):
    values = np.zeros((2, 100, 100))
    values[:, :7, :7] = 1
    with pytest.raises(ImageFileError, match=r"found only emptier slices in .*tiny.npz"):
        one(stored(tmp_path / "tiny.npz", images=values))
