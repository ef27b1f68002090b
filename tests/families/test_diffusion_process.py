"""Noise, losses, samplers and large pictures of the family diffusion, against slow twins and known answers."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from zoo.errors import UserError
from zoo.families.diffusion import assembly, sampling, schedule
from zoo.families.diffusion.schedule import Prediction, Schedule
from zoo.families.diffusion.solver import continuous_dpm

PREDICTIONS: tuple[Any, ...] = get_args(Prediction)
SCHEDULES = [Schedule(), Schedule("scaled-linear", 1000, 0.0015, 0.0195), Schedule("cosine")]


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", SCHEDULES, ids=lambda s: s.betas_name)
def test_schedules_are_those_of_diffusers(noise: Schedule) -> None:
    scheduler = sampling.make_scheduler("ddim", noise)
    torch.testing.assert_close(noise.alphas_cumprod.float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("noise", SCHEDULES, ids=lambda s: s.betas_name)
def test_a_perfect_prediction_gives_back_what_was_mixed(noise: Schedule, prediction: Any) -> None:
    clean, fresh = torch.randn(3, 2, 4, 4).double(), torch.randn(3, 2, 4, 4).double()
    t = torch.tensor([3, 500, 950])
    x = schedule.add_noise(noise, clean, fresh, t, prediction)
    target = schedule.target_of(noise, clean, fresh, t, prediction)
    torch.testing.assert_close(schedule.clean_of(noise, target, x, t, prediction), clean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(schedule.noise_of(noise, target, x, t, prediction), fresh, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_is_a_capped_weight_on_the_clean_picture(prediction: Any) -> None:
    noise = Schedule("cosine")
    clean, fresh, t = torch.randn(5, 3).double(), torch.randn(5, 3).double(), torch.tensor([5, 200, 500, 800, 990])
    x = schedule.add_noise(noise, clean, fresh, t, prediction)
    output = schedule.target_of(noise, clean, fresh, t, prediction) + 0.1 * torch.randn(5, 3).double()
    terms = schedule.denoising_loss(noise, output, clean, fresh, t, prediction=prediction, weighting="min-snr", gamma=5)
    guess = schedule.clean_of(noise, output, x, t, prediction)
    for i in range(5):
        signal, share = schedule.Schedule.signal_and_noise(noise, t[i : i + 1], clean, prediction)
        weight = min(float(signal) ** 2 / float(share) ** 2, 5.0)
        expected = weight * float((guess[i] - clean[i]).square().mean())
        assert float(terms["error"][i]) == pytest.approx(expected, rel=1e-3)


def test_plain_weighting_is_the_mean_squared_error() -> None:
    clean, fresh, t = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([1, 2])
    output = torch.randn(2, 3)
    terms = schedule.denoising_loss(Schedule(), output, clean, fresh, t)
    assert set(terms) == {"error"}
    torch.testing.assert_close(terms["error"], ((output - fresh) ** 2).mean(1))


def test_the_bound_is_a_divergence_of_gaussians_in_bits() -> None:
    noise = Schedule()
    clean, fresh = torch.rand(4, 2, 3, 3).double() * 2 - 1, torch.randn(4, 2, 3, 3).double()
    t, output = torch.tensor([1, 7, 400, 999]), torch.randn(4, 4, 3, 3).double()
    terms = schedule.denoising_loss(noise, output, clean, fresh, t)
    for i, time in enumerate(t.tolist()):
        beta, bar, before = (float(v[time]) for v in (noise.betas, noise.alphas_cumprod, noise.alphas_cumprod_before))
        x = bar**0.5 * clean[i] + (1 - bar) ** 0.5 * fresh[i]

        def mean(guess: Tensor, beta: float = beta, bar: float = bar, before: float = before, x: Tensor = x) -> Tensor:
            return (before**0.5 * beta * guess + (1 - beta) ** 0.5 * (1 - before) * x) / (1 - bar)

        guess = (x - (1 - bar) ** 0.5 * output[i, :2]) / bar**0.5
        low, high = math.log(beta * (1 - before) / (1 - bar)), math.log(beta)
        share = (output[i, 2:] + 1) / 2
        deviation = (0.5 * (share * high + (1 - share) * low)).exp()
        true = Normal(mean(clean[i]), math.exp(0.5 * low))
        apart = kl_divergence(true, Normal(mean(guess), deviation)).mean() / math.log(2)
        assert float(terms["bound"][i]) == pytest.approx(float(apart), rel=1e-6)


def test_the_first_step_of_the_bound_is_the_mass_of_a_bin() -> None:
    noise, t = Schedule(), torch.zeros(1, dtype=torch.int64)
    clean = torch.tensor([[[-1.0, 0.2, 1.0]]]).double()
    fresh = torch.randn(1, 1, 3).double()
    output = torch.cat([fresh + 0.3, torch.zeros(1, 1, 3).double()], 1)
    got = schedule.denoising_loss(noise, output, clean, fresh, t)["bound"]
    x = schedule.add_noise(noise, clean, fresh, t)
    mean = schedule.clean_of(noise, output[:, :1], x, t)
    deviation = math.exp(0.25 * (math.log(float(noise.betas[0])) + float(noise.posterior_log_variance[0])))
    gaussian = Normal(mean, deviation)
    upper, lower = gaussian.cdf(clean + 1 / 255), gaussian.cdf(clean - 1 / 255)
    upper[..., 2], lower[..., 0] = 1.0, 0.0  # open bins at the ends
    expected = -(upper - lower).log().mean() / math.log(2)
    assert float(got) == pytest.approx(float(expected), rel=0.02)  # the published code approximates the distribution


def test_the_bound_teaches_the_variance_alone() -> None:
    output = torch.randn(2, 4, 3, 3, requires_grad=True)
    terms = schedule.denoising_loss(
        Schedule(), output, torch.randn(2, 2, 3, 3), torch.randn(2, 2, 3, 3), torch.tensor([0, 9])
    )
    slope = torch.autograd.grad(terms["bound"].sum(), output)[0]
    assert float(slope[:, :2].abs().max()) == 0
    assert float(slope[:, 2:].abs().min()) > 0
    kept = schedule.denoising_loss(
        Schedule(), output, output[:, :2] * 0, output[:, :2] * 0, torch.tensor([0, 9]), bound=False
    )
    assert set(kept) == {"error"}


def test_times_are_drawn_over_the_whole_range() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = schedule.draw_times(Schedule(), 20000, "epsilon", generator)
    assert whole.dtype == torch.int64
    assert (int(whole.min()), int(whole.max())) == (0, 999)
    flow = schedule.draw_times(Schedule(), 20000, "flow", generator)
    assert 0 < float(flow.min()) < 1
    assert 999 < float(flow.max()) < 1000


# --- samplers ---------------------------------------------------------------------------------------------------------


def gaussian(noise: Schedule, prediction: Any, mean: float, deviation: float) -> sampling.Predict:
    """Return the exact prediction for pictures whose pixels are independent Gaussians."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        signal, share = noise.signal_and_noise(t, x, prediction)
        variance = signal**2 * deviation**2 + share**2
        clean = mean + signal * deviation**2 / variance * (x - signal * mean)
        fresh = (x - signal * clean) / share
        if prediction == "flow":
            return fresh - clean
        return {"epsilon": fresh, "sample": clean, "v": signal * fresh - share * clean}[prediction]

    return predict


@pytest.mark.parametrize(
    ("sampler", "prediction"),
    [*((name, "epsilon") for name in sampling.SAMPLERS), ("dpm++", "v"), ("ddim", "sample"), ("dpm++", "flow")],
)
def test_samplers_draw_from_the_distribution(sampler: Any, prediction: Any) -> None:
    noise = Schedule("linear")
    scheduler = sampling.make_scheduler(sampler, noise, prediction)
    steps = 250 if sampler == "ddpm" else 40
    start, generators = sampling.noise_like((1, 40, 40), [1, 2])
    found = sampling.sample(gaussian(noise, prediction, 0.5, 0.25), start, scheduler, steps, generators)
    assert float(found.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(found.std()) == pytest.approx(0.25, abs=0.03)


def test_a_picture_depends_on_its_seed_alone() -> None:
    predict = gaussian(Schedule(), "epsilon", 0.0, 0.5)
    together, generators = sampling.noise_like((1, 4, 4), [5, 6, 7])
    scheduler = sampling.make_scheduler("ddpm")
    batch = sampling.sample(predict, together, scheduler, 10, generators)
    alone, one = sampling.noise_like((1, 4, 4), [6])
    found = sampling.sample(predict, alone, sampling.make_scheduler("ddpm"), 10, one)
    torch.testing.assert_close(found[0], batch[1], rtol=1e-4, atol=1e-5)


def test_the_continuous_solver_agrees_with_fine_steps() -> None:
    predict = gaussian(Schedule(), "epsilon", 0.3, 0.4)
    start, _ = sampling.noise_like((1, 8, 8), [0])
    fine = sampling.sample(predict, start, sampling.make_scheduler("ddim"), 1000)
    errors = [float((continuous_dpm(predict, start, Schedule(), n) - fine).abs().mean()) for n in (10, 20, 640)]
    assert errors[2] < 0.005
    assert errors[1] < 0.04
    assert errors[1] < errors[0] / 2.5  # of second order


def test_schedulers_of_a_published_configuration() -> None:
    found = sampling.scheduler_of_config(
        {"_class_name": "DDIMScheduler", "_diffusers_version": "0.32", "beta_end": 0.01}
    )
    assert (type(found).__name__, found.config.beta_end) == ("DDIMScheduler", 0.01)
    assert type(sampling.scheduler_of_config({})).__name__ == "DPMSolverMultistepScheduler"
    with pytest.raises(UserError, match="no scheduler"):
        sampling.scheduler_of_config({"_class_name": "os.system"})
    with pytest.raises(UserError, match="has no argument"):
        sampling.scheduler_of_config({"beta_ende": 1})
    with pytest.raises(UserError, match=r"no sampler.*ddim"):
        sampling.make_scheduler("ddmi")  # type: ignore[arg-type]


# --- large pictures ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_windows_cover_everything_and_stay_inside(size: int, window: int, stride: int) -> None:
    if not stride <= window <= size:
        with pytest.raises(ValueError, match="Expected stride"):
            assembly.starts(size, window, stride)
        return
    found = assembly.starts(size, window, stride)
    covered = {pixel for start in found for pixel in range(start, start + window)}
    assert covered == set(range(size))
    assert found == sorted(set(found))


def test_one_window_is_plain_ddim() -> None:
    predict = gaussian(Schedule(), "epsilon", 0.2, 0.3)
    start, _ = sampling.noise_like((2, 8, 8), [0])
    got = assembly.windowed_ddim(lambda x, t, _: predict(x, t), start, Schedule(), 20, window=8, stride=8, end="clean")
    scheduler = sampling.make_scheduler("ddim")
    scheduler.set_timesteps(20)
    expected = sampling.sample(predict, start, scheduler, 20)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_windows_of_a_pixelwise_model_agree_with_the_whole() -> None:
    predict = gaussian(Schedule(), "epsilon", 0.2, 0.3)
    start, _ = sampling.noise_like((1, 11, 17), [0])
    wide = assembly.windowed_ddim(lambda x, t, _: predict(x, t), start, Schedule(), 10, window=4, stride=3, batch=5)
    per_pixel = assembly.windowed_ddim(
        lambda x, t, _: predict(x, t), start, Schedule(), 10, window=1, stride=1, batch=99
    )
    torch.testing.assert_close(wide, per_pixel, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_interrupted_large_picture_goes_on(eta: float) -> None:
    predict = gaussian(Schedule(), "epsilon", 0.2, 0.3)
    start, generators = sampling.noise_like((1, 6, 6), [0])
    told: dict[int, tuple[Tensor, Tensor]] = {}
    more: dict[str, Any] = {"window": 4, "stride": 2, "eta": eta, "end": "clean"}
    generator = generators[0]
    whole = assembly.windowed_ddim(
        lambda x, t, _: predict(x, t), start, Schedule(), 10, **more, generator=generator,
        on_step=lambda n, x: told.update({n: (x.clone(), generator.get_state())}),
    )  # fmt: skip
    x, state = told[4]
    again = torch.Generator()
    again.set_state(state)
    rest = assembly.windowed_ddim(lambda x, t, _: predict(x, t), x, Schedule(), 10, **more, begin=4, generator=again)
    assert torch.equal(rest, whole)


def test_times_that_the_network_is_told() -> None:
    for late in (False, True):
        told: list[int] = []

        def predict(x: Tensor, t: Tensor, _: Any, told: list[int] = told) -> Tensor:
            told.append(int(t[0]))
            return torch.zeros_like(x)

        assembly.windowed_ddim(predict, torch.randn(1, 1, 2, 2), Schedule(), 5, window=2, stride=2, late=late)
        assert told == [999 + late, 799 + late, 599 + late, 399 + late, 199 + late]


def test_bands_are_the_whole_blended() -> None:
    torch.manual_seed(0)
    latent = torch.randn(1, 2, 11, 9)

    def decode(z: Tensor) -> Tensor:  # not the same at a window's edge, as a decoder is not
        ramp = torch.linspace(0.5, 1, z.shape[-1] * 2)
        return (z[:, :1].repeat_interleave(2, -1).repeat_interleave(2, -2) * ramp).clamp(-1, 1)

    bands = list(assembly.decode_bands(decode, latent, window=4, stride=3, factor=2, batch=2))
    kernel = assembly.blend_kernel(8).double()
    total, weight = torch.zeros(1, 22, 18).double(), torch.zeros(22, 18).double()
    for i, j in assembly.corners((11, 9), 4, 3):
        picture = decode(latent[:, :, i : i + 4, j : j + 4])[0].double()
        total[:, 2 * i : 2 * i + 8, 2 * j : 2 * j + 8] += picture * kernel
        weight[2 * i : 2 * i + 8, 2 * j : 2 * j + 8] += kernel
    torch.testing.assert_close(torch.cat(bands, 1).double(), total / weight, rtol=1e-5, atol=1e-6)
    assert max(band.shape[1] for band in bands) <= 8


def test_the_kernel_is_highest_in_the_middle_and_the_same_all_round() -> None:
    kernel = assembly.blend_kernel(33, 0.8)
    assert float(kernel[16, 16]) == 1
    for turned in (kernel.T, kernel.flip(0), kernel.flip(1)):
        torch.testing.assert_close(turned, kernel)
    assert float(kernel[0, 16]) == pytest.approx(math.exp(-1 / 0.64), rel=1e-5)


def test_the_arc_between_vectors() -> None:
    a, b = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 1e-4]])
    third = assembly.slerp(a, b, torch.tensor([1 / 3, 0.5]))
    torch.testing.assert_close(third[0], torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]))
    torch.testing.assert_close(third[1], torch.tensor([2.0, 5e-5]))  # nearly parallel: the line
    torch.testing.assert_close(assembly.slerp(a, b, torch.zeros(2)), a)
    torch.testing.assert_close(assembly.slerp(a, b, torch.ones(2)), b)


def test_embeddings_of_a_grid() -> None:
    grid = torch.randn(3, 4, 5)
    exact = assembly.between_cells(grid, [(0, 0), (64, 128), (128, 192), (190, 300)], 64)
    torch.testing.assert_close(exact[0], grid[0, 0])
    torch.testing.assert_close(exact[1], grid[1, 2])
    torch.testing.assert_close(exact[2:], grid[2, 3].expand(2, -1))  # repeated beyond the last
    under = assembly.cells_under(grid, [(0, 0), (35, 64)], 32, 2)
    assert under.shape == (2, 4, 5)
    torch.testing.assert_close(under[0], grid[:2, :2].reshape(4, 5))
    torch.testing.assert_close(under[1], grid[1:3, 2:4].reshape(4, 5))
