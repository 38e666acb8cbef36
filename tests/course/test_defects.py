"""The defects page: its numbers against closed forms."""

import hashlib
import io
import math
import re

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from pyro_vaes.course.report import defects, demonstrations
from pyro_vaes.parts import priors


@pytest.fixture(scope="module")
def mixture():
    return demonstrations.mixture_defect()


@pytest.fixture(scope="module")
def fits():
    return demonstrations.flow_defect()[0]


def two_normals(z, scale=1.0):
    """Log density of the mixture at the corners, written out."""
    terms = [
        math.log(0.5)
        - sum(0.5 * ((v - corner) / scale) ** 2 + 0.5 * math.log(2 * math.pi * scale**2) for v in z)
        for corner in (3.0, -3.0)
    ]
    return math.log(sum(map(math.exp, terms)))


def test_the_mixture_at_the_corner_that_is_none(mixture):
    assert mixture["joint"] == pytest.approx(two_normals((3, -3)), abs=1e-9)
    assert mixture["per_dimension"] == pytest.approx(
        two_normals((3,)) + two_normals((-3,)), abs=1e-9
    )
    assert round(mixture["joint"], 2) == -19.84
    assert round(mixture["per_dimension"], 2) == -3.22


def test_the_charge_is_the_total_correlation(mixture):
    for dim in (2, 16):
        # Components so far apart that each dimension identifies one: (D - 1) log 2, less a little.
        exact = (dim - 1) * math.log(2)
        assert exact - 0.15 < mixture[f"correlation_{dim}"] < exact


def test_the_bounds_of_the_mixture(mixture):
    # No bound is above the evidence; the one that passes for a bound is, where nothing is drawn.
    assert mixture["likely_joint"] > mixture["likely_exact"]
    assert mixture["ghost_joint"] > mixture["ghost_exact"]
    assert mixture["ghost_per_dimension"] < mixture["ghost_exact"] - 5
    charge = mixture["likely_per_dimension"] - mixture["likely_joint"]
    assert charge == pytest.approx(math.log(2), abs=0.1)


def test_the_defect_is_a_density_of_its_own():
    # All the more treacherous: it integrates to one, and is not what the sampler draws.
    wrong = demonstrations.PerDimension(demonstrations.two_corners(2))
    with torch.no_grad():
        total = demonstrations.integral(lambda z: wrong().log_prob(z))
    assert total == pytest.approx(1, abs=1e-6)


def test_a_flow_counted_once_finds_the_entropy(fits):
    for fit in fits:
        assert fit["right_nll"] == pytest.approx(fit["entropy"], abs=0.05)
        assert fit["right_spread"] == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(("which", "tolerance"), [(0, 0.08), (1, 0.5)])
def test_a_flow_counted_too_often_against_theory(fits, which, tolerance):
    # u ends as N(0, D I): both NLLs follow from its entropy and second moment.
    fit = fits[which]
    dim, entropy = fit["dim"], fit["entropy"]
    half = dim / 2
    at_base = -half * math.log(2 * math.pi) - half * dim
    spread_out = half * math.log(2 * math.pi * math.e * dim)
    assert fit["reported_nll"] == pytest.approx(
        dim * entropy - at_base - dim * spread_out, abs=tolerance
    )
    assert fit["wrong_nll"] == pytest.approx(entropy - at_base - spread_out, abs=tolerance)


def test_how_far_samples_shrink(fits):
    bent, normal = fits
    assert normal["wrong_spread"] == pytest.approx(1 / 4, abs=0.01)
    # The bent normal at half its variance: 1/2 + 1/8 + 1/8, of 1 + 1/2 + 1/4.
    assert bent["wrong_spread"] == pytest.approx(math.sqrt(0.75 / 1.75), abs=0.03)
    # Determinant 2 of a flow that whitens, times 2 of one that spreads to variance 2.
    assert bent["mass"] == pytest.approx(4, abs=0.3)


def test_counting_once_changes_nothing():
    torch.manual_seed(0)
    prior = priors.FlowPrior(3, demonstrations.flows.realnvp(3, 3)).double()()
    z = torch.randn(50, 3).double()
    torch.testing.assert_close(demonstrations.counted(prior, z, 1), prior.log_prob(z))
    per_dimension = demonstrations.counted(prior, z, 3) - demonstrations.counted(prior, z, 2)
    twice = demonstrations.counted(prior, z, 2) - prior.log_prob(z)
    torch.testing.assert_close(per_dimension, twice)


@pytest.mark.parametrize("which", [0, 1])
def test_the_spread_of_a_sampler_that_takes_the_variance(which):
    case = demonstrations.scale_defect()[which]
    scale = case["scale"]
    assert case["density"] == pytest.approx(scale, rel=0.02)
    assert case["sampler"] == pytest.approx(scale**2, rel=0.02)
    exact = -math.log(scale) + 0.5 * scale**2 - 0.5
    assert case["kl"] == pytest.approx(exact, abs=0.03)


def test_the_one_draw_ranks_two_models_the_wrong_way():
    true, wrong = demonstrations.bound_defect()
    for model in (true, wrong):
        assert model["weighted"] == pytest.approx(model["exact"], abs=0.02)
        assert model["lowest"] <= model["one_draw"] <= model["highest"]
    assert true["exact"] < wrong["exact"]
    assert true["one_draw"] > wrong["one_draw"]
    # An exact posterior leaves neither gap nor noise.
    assert wrong["bound"] == pytest.approx(wrong["exact"], abs=1e-9)
    assert wrong["highest"] - wrong["lowest"] < 1e-9
    assert true["highest"] - true["lowest"] > 0.1


def test_the_page_is_whole_and_the_same_each_time(monkeypatch):
    monkeypatch.setattr(demonstrations, "STEPS", 3)
    state = torch.random.get_rng_state()
    pages = [defects.defects_page() for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert pages[0].markdown == pages[1].markdown
    assert len(re.findall(r"^# ", pages[0].markdown, re.MULTILINE)) == 1
    assert len(re.findall(r"^## ", pages[0].markdown, re.MULTILINE)) == 4
    named = set(re.findall(r"\]\((\S+\.png)\)", pages[0].markdown))
    assert named == set(pages[0].figures)
    assert digests(pages[0]) == digests(pages[1])
    assert not re.search(r"\b(nan|inf)\b", pages[0].markdown)


def digests(page):
    found = {}
    for name, figure in page.figures.items():
        FigureCanvasAgg(figure)
        figure.savefig(buffer := io.BytesIO(), format="png")
        found[name] = hashlib.sha256(buffer.getvalue()).hexdigest()
    return found
