"""A fleet's day over the service's ledger: `python -m bench.fleet --json`; the last line is JSON.

Ten thousand spot cards, a million jobs of three tenants, half of them handed in at once
(`bench.fleet_world`). It is run with as many cards as there are at most all day, with KEDA's rule
of `helm/troupe` (jobs that wait and jobs in hand), and with jobs that wait alone, as a scaler that
asks a list for its length would have it.

    agreement   a smaller day, run over the ledger itself and over its model (`bench.fleet_queue`):
                starts that are the same job at the same ms, of how many
    policies    of each: wait_min (by tenant: half, 95 %, 99 % wait no longer), utilisation (work of
                finished jobs / time of cards), card_hours, per_job_s (card time of a finished job),
                handed_back, expired, hours (until all has ended), waiting_most
    fairness    all three ask for all at once: Jain's index of the time they got while all waited
    rates       CPU of Redis's thread for each call, us, and memory of a job (`bench.fleet_rates`)
    limit       cards for which that thread is busy for 70 % of its time

`--small` is a hundredth of it all. `--plot FILE` draws docs/fleet.png.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.fleet_queue import Model, Real
from bench.fleet_rates import durable_redis, limit, measure
from bench.fleet_world import HOUR_MS, TENANTS, Account, Fleet, Keda, Rule, World
from service.ledger import connect

LEAST = 0.02  # of all cards, kept when nobody asks
POLICIES = ("all cards", "waiting and running", "waiting alone")
SEEN = "waiting and running"  # helm/troupe's own


def rule_of(name: str, cards: int) -> tuple[Rule, int]:
    """A policy, and how many cards it begins with."""
    least = max(int(cards * LEAST), 1)
    if name == "all cards":
        return (lambda queued, running, now, at: cards), cards
    return Keda(least, cards, running=name == SEEN), least


def day(world: World, policy: str) -> Account:
    """One day over the model."""
    rule, first = rule_of(policy, world.cards)
    return Fleet(world, Model(int(world.lease_s * 1000 / 8)), rule, first).run()


def agreement(world: World) -> dict[str, int]:
    """The same day over both ledgers. The real one's disk is not waited for: it is not killed."""
    accounts = [day(world, SEEN)]
    # Nobody is turned away, and no job given up: it saves as it goes.
    bounds = {"lease_s": world.lease_s, "max_attempts": 10**6, "stall_s": 1e9}
    with durable_redis() as found:
        settings = found.model_copy(update=bounds)
        client = connect(settings)
        client.config_set("appendfsync", "no")
        rule, first = rule_of(SEEN, world.cards)
        accounts.append(Fleet(world, Real(client, settings), rule, first).run())
        client.close()
    one, other = (account.starts for account in accounts)
    same = sum(a == b for a, b in zip(one, other, strict=False))
    return {"jobs": world.jobs, "starts": max(len(one), len(other)), "same": same}


def figures(account: Account) -> dict[str, Any]:
    """See the module's text."""
    waits = {
        who: [round(float(q) / 60_000, 2) for q in np.quantile(found, (0.5, 0.95, 0.99))]
        for who, found in account.waits.items()
    }
    return {
        "wait_min": waits,
        "utilisation": round(account.work / account.held, 4),
        "card_hours": round(account.held / HOUR_MS),
        "per_job_s": round(account.held / 1000 / account.ended, 1),
        "handed_back": account.handed_back,
        "expired": account.expired,
        "hours": round(account.last / HOUR_MS, 2),
        "waiting_most": max(queued for _, queued, _, _ in account.line),
    }


def fairness(world: World) -> dict[str, Any]:
    """Jain's index, 1 where all got the same; see the module's text."""
    got = day(replace(world, together=True), "all cards").got
    shares = np.array([got[who] for who in TENANTS], float)
    index = float(shares.sum() ** 2 / (len(shares) * np.square(shares).sum()))
    return {"jain": round(index, 4), "share": [round(x, 4) for x in shares / shares.sum()]}


def run(asked: argparse.Namespace, tell: Console) -> dict[str, Any]:
    """All of it."""
    scale = 100 if asked.small else 1
    world = World(cards=asked.cards // scale, jobs=asked.jobs // scale, seed=asked.seed)
    # The same load on fewer cards, and more losses, so that there are some of each kind.
    check = World(cards=max(asked.check // 100, 4), jobs=asked.check, lost_an_hour=0.5, seed=7)
    told: dict[str, Any] = {"world": {"cards": world.cards, "jobs": world.jobs}}
    begun = time.monotonic()
    told["agreement"] = agreement(check)
    tell.print(f"agreement: {told['agreement']}, {time.monotonic() - begun:.0f} s")
    accounts = {}
    for policy in POLICIES:
        accounts[policy] = day(world, policy)
        tell.print(f"{policy}: {time.monotonic() - begun:.0f} s")
    told["policies"] = {name: figures(account) for name, account in accounts.items()}
    told["fairness"] = fairness(replace(world, cards=world.cards // 10, jobs=world.jobs // 10))
    rounds, workers = (3, 20) if asked.small else (5, 2000)
    told["rates"] = measure(asked.depth // scale, asked.calls, rounds, workers)
    told["limit"] = limit(told["rates"]["us"])
    if asked.plot:
        draw(accounts, asked.plot)
    return told


def draw(accounts: dict[str, Account], path: Path) -> None:
    """Queue, cards and waits over the day, and what it cost."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(11, 6.5), layout="constrained")
    (queue, cards), (waits, cost) = panels
    colours = dict(zip(accounts, ("#888888", "#1f6f5c", "#c8553d"), strict=True))
    for name, account in accounts.items():
        hours, queued, running, there = np.array(account.line, float).T
        hours = hours / HOUR_MS
        queue.plot(hours, queued / 1000, color=colours[name], label=name)
        cards.plot(hours, there, color=colours[name], label=f"{name}: cards")
        if name == SEEN:
            cards.fill_between(hours, running, color=colours[name], alpha=0.15, label="with a job")
    queue.set(title="Jobs that wait, thousands", xlabel="hour")
    cards.set(title="Cards", xlabel="hour", ylim=(0, None))
    told = {name: figures(account) for name, account in accounts.items()}
    places = np.arange(len(TENANTS))
    for number, name in enumerate(accounts):
        values = [max(told[name]["wait_min"][who][1], 0.01) for who in TENANTS]
        waits.bar(places + 0.27 * (number - 1), values, 0.25, color=colours[name], label=name)
    waits.set(title="95 % wait no longer than, minutes", yscale="log")
    waits.set_xticks(places, TENANTS)
    rows = [told[name]["card_hours"] for name in accounts]
    bars = cost.barh(list(accounts), rows, color=[colours[name] for name in accounts])
    words = [f"{told[name]['utilisation']:.0%} of it work" for name in accounts]
    cost.bar_label(bars, words, padding=-90, color="white")
    cost.set(title="Card hours")
    cost.invert_yaxis()
    for panel in (queue, cards, waits):
        panel.legend(frameon=False, fontsize=8)
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def table(result: dict[str, Any]) -> Table:
    """One row per policy."""
    shown = Table("cards by", *(f"{who}: 95 % wait" for who in TENANTS), "work", "card hours")
    for name, row in result["policies"].items():
        waits = [f"{row['wait_min'][who][1]:.1f} min" for who in TENANTS]
        shown.add_row(name, *waits, f"{row['utilisation']:.1%}", str(row["card_hours"]))
    return shown


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cards", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--check", type=int, default=20_000, help="jobs of the smaller day (20000)")
    parser.add_argument("--calls", type=int, default=1000, help="of each kind and round (1000)")
    parser.add_argument("--depth", type=int, default=100_000, help="jobs that wait meanwhile")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a hundredth")
    parser.add_argument("--plot", type=Path, help="draw here (PNG)")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Exit status: 1 where ledger and model differ."""
    asked = arguments(given)
    console = Console(stderr=True)
    result = run(asked, console)
    console.print(table(result))
    if asked.json:
        sys.stdout.write(json.dumps(result) + "\n")
    return int(result["agreement"]["same"] != result["agreement"]["starts"])


if __name__ == "__main__":
    sys.exit(main())
