"""What the studies found, in words that the figures support: every claim exceeds its error."""

from __future__ import annotations

import math

from pyro_vaes.outcomes import Difference, Outcome, joined

__all__ = [
    "beta",
    "components",
    "conditional",
    "flow_priors",
    "info",
    "likelihoods",
    "plain",
    "posteriors",
    "priors",
]


def _with_error(value: float, error: float, digits: int = 2) -> str:
    spread = "" if math.isnan(error) else f" ± {error:.{digits}f}"
    return f"{value:.{digits}f}{spread}"


def _figure(o: Outcome, label: str, key: str, digits: int = 2) -> str:
    return _with_error(*o.mean(label, key), digits)


def plain(o: Outcome) -> list[str]:
    """Sentences on the plain VAE."""
    label = o.labels[0]
    return [
        f"NLL is {_figure(o, label, 'nll')} nats per datum, the ELBO lies "
        f"{_figure(o, label, 'gap')} nats below log p(x).",
        f"{_figure(o, label, 'active_units', 1)} of {o.vae(label).posterior.latent_dim} latent "
        f"units are active; z carries {_figure(o, label, 'mutual_information')} nats about x.",
    ]


def beta(o: Outcome) -> list[str]:
    """Sentences on the weight of the KL."""
    first, last = o.labels[0], o.labels[-1]
    found = [
        f"As beta rises from {first.split(' = ')[1]} to {last.split(' = ')[1]}, the active units "
        f"go from {_figure(o, first, 'active_units', 1)} to {_figure(o, last, 'active_units', 1)} "
        f"and I(x; z) from {_figure(o, first, 'mutual_information')} to "
        f"{_figure(o, last, 'mutual_information')} nats.",
        f"The lowest NLL is that of {o.best()}.",
        *o.ranked("beta = 1", o.labels),
    ]
    if first == "beta = 0":
        gap = o.differs(first, "beta = 1", "marginal_kl")
        if gap.clear and gap.mean > 0:
            found.append(
                "With beta = 0 nothing holds q(z) to the prior: the marginal KL is "
                f"{_figure(o, first, 'marginal_kl', 1)} nats, "
                f"{gap.mean:.1f} more than at beta = 1. Draws from the prior fall where the "
                "decoder has never been trained: it generates rubbish, well as it reconstructs."
            )
    return found


def conditional(o: Outcome) -> list[str]:
    """Sentences on the conditional generator."""
    found = [
        f"{o.compared(label, 'p(x)')} (NLL of x given its label against NLL of x)."
        for label in o.labels[1:]
    ]
    for label in o.labels[1:]:
        joint = o.paired(label, "p(x)")
        saved = Difference(-joint.mean, joint.error)
        most = math.log(o.data.num_labels or 1)
        found.append(
            f"{label}: knowing the label saves {_with_error(*saved)} nats; telling it would cost "
            f"{most:.2f} (log {o.data.num_labels}). A classifier of real digits gives "
            f"{100 * o.mean(label, 'generated_accuracy')[0]:.1f}% of the generated ones the label "
            f"they were asked for, and {100 * o.mean(label, 'class_accuracy_real')[0]:.1f}% of the "
            "real test digits theirs."
        )
    return found


def priors(o: Outcome) -> list[str]:
    """Sentences on learned priors."""
    found = []
    for size in dict.fromkeys(o.table["latent_dim"]):
        labels = [label for label in o.labels if label.endswith(f", {size}-D")]
        reference = f"standard, {size}-D"
        found += o.ranked(reference, labels)
        closer = [
            label
            for label in labels
            if label != reference
            and (gap := o.differs(label, reference, "marginal_kl")).clear
            and gap.mean < 0
        ]
        if closer:
            shown = joined([f"{k} ({_figure(o, k, 'marginal_kl')})" for k in closer])
            found.append(
                f"Closer to the aggregated posterior than {reference} (marginal KL "
                f"{_figure(o, reference, 'marginal_kl')} nats): {shown}."
            )
    return found


def likelihoods(o: Outcome) -> list[str]:
    """Sentences on the likelihoods."""
    reference = "categorical, MLP"
    learned = [f"{reference}, {prior}" for prior in ("mixture", "VampPrior")]
    best = o.best(among=[k for k in o.labels if k.endswith(", MLP") and k != reference])
    gain = o.paired(best, reference)
    found = o.ranked(reference, [k for k in o.labels if k.endswith(", MLP")])
    most = min((o.paired(k, reference) for k in learned), key=lambda g: g.mean)
    if gain.clear and gain.mean < 0:
        found.append(
            f"Knowing the order of the levels is worth {gain} nats ({best}); the better of the "
            f"learned priors changes NLL by {most.mean:+.2f} ± {most.error:.2f} nats."
        )
    pairs = [
        (k, k.replace("convolutions", "MLP")) for k in o.labels if k.endswith(", convolutions")
    ]
    found += [f"{o.compared(conv, mlp)}." for conv, mlp in pairs]
    for label in o.labels:
        warm = f"{label}, KL warm-up"
        if warm in o.labels and o.mean(label, "active_units")[0] < 1:
            found.append(
                f"With {label} the posterior collapses: no unit is active. With a warm-up of the "
                f"KL {_figure(o, warm, 'active_units', 1)} are; {o.compared(warm, label)}."
            )
    return found


def components(o: Outcome) -> list[str]:
    """Sentences on the number of components."""
    found = []
    for prior in ("mixture", "VampPrior"):
        labels = [
            k for k in o.labels if k.startswith(f"{prior}, K = ") and k.rsplit(" ", 1)[1].isdigit()
        ]
        chosen = max(labels, key=lambda label: o.mean(label, "val_elbo")[0])
        least, most = labels[0], labels[-1]
        found.append(
            f"{prior}: validation chooses {chosen.split(', ')[1]}, with a test NLL of "
            f"{_figure(o, chosen, 'nll')}; {o.compared(chosen, least)}."
            if chosen != least
            else f"{prior}: validation chooses {chosen.split(', ')[1]}, with a test NLL of "
            f"{_figure(o, chosen, 'nll')}."
        )
        before, after = (o.values(k, "nll") - o.values(k, "nll_train") for k in (least, most))
        found.append(
            f"{prior}: test NLL exceeds training NLL by {before.mean():.2f} nats with "
            f"{least.split(', ')[1]} and by {after.mean():.2f} with {most.split(', ')[1]}, of "
            f"whose components {_figure(o, most, 'components_used', 1)} are used; an epoch takes "
            f"{o.mean(most, 'seconds_per_epoch')[0] / o.mean(least, 'seconds_per_epoch')[0]:.1f} "
            "times as long."
        )
    reference = "VampPrior, K = 50"
    starts = [k for k in o.labels if k.startswith(f"{reference}, ")]
    return found + o.ranked(reference, starts)


def flow_priors(o: Outcome) -> list[str]:
    """Sentences on flow priors."""
    found = o.ranked("standard", o.labels)
    for flow in dict.fromkeys(o.table["flow"]):
        labels = [k for k in o.labels if k.startswith(f"{flow}, ")]
        if len(labels) > 1:
            found.append(f"{o.compared(labels[-1], labels[0])}.")
    return found


def posteriors(o: Outcome) -> list[str]:
    """Sentences on richer posteriors."""
    found = o.ranked("diagonal", o.labels)
    gaps = {k: o.differs(k, "diagonal", "gap") for k in o.labels if k != "diagonal"}
    closer = [k for k, g in gaps.items() if g.clear and g.mean < 0]
    if closer:
        shown = joined([f"{k} ({_figure(o, k, 'gap')})" for k in closer])
        found.append(
            "The gap between the ELBO and log p(x), "
            f"{_figure(o, 'diagonal', 'gap')} nats with a diagonal normal, is smaller with {shown}."
        )
        closest = min(closer, key=lambda k: o.mean(k, "gap")[0])
        times = [o.mean(k, "seconds_per_epoch")[0] for k in (closest, "diagonal")]
        found.append(
            f"Its price: with the closest, {closest}, an epoch takes {times[0] / times[1]:.1f} "
            "times as long as with a diagonal normal."
        )
    else:
        found.append("No posterior here has a gap that is clearly smaller than the diagonal's.")
    return found


def info(o: Outcome) -> list[str]:
    """Sentences on InfoVAE."""
    reference = "ELBO"
    found = [
        "With the autoregressive decoder the ELBO leaves "
        f"{_figure(o, reference, 'active_units', 1)} units active and "
        f"{_figure(o, reference, 'mutual_information')} nats in z."
    ]
    plain_label = "ELBO, plain decoder"
    if plain_label in o.labels:
        found.append(
            f"With the plain decoder there are {_figure(o, plain_label, 'active_units', 1)} active "
            f"units and {_figure(o, plain_label, 'mutual_information')} nats; "
            f"{o.compared(reference, plain_label)}."
        )
    for label in o.labels:
        if label in (reference, plain_label):
            continue
        gap = o.differs(label, reference, "mutual_information")
        more = "more" if gap.mean > 0 else "less"
        told = (
            f"{gap} nats {more} in z than the ELBO"
            if gap.clear
            else "no clear change of what z carries"
        )
        found.append(
            f"{label}: {told}, {_figure(o, label, 'active_units', 1)} active units, MMD² "
            f"{_figure(o, label, 'mmd2', 4)}; {o.compared(label, reference)}."
        )
    return found
