"""One file a command: the click command beside the function it calls; heavy imports happen inside the function."""

from __future__ import annotations

import click

from pipeline.commands.advise import advise
from pipeline.commands.benchmark import benchmark
from pipeline.commands.cache import cache
from pipeline.commands.check_network import check_network
from pipeline.commands.compare import compare
from pipeline.commands.datasets import datasets
from pipeline.commands.demo import demo
from pipeline.commands.doctor import doctor
from pipeline.commands.estimators import estimators
from pipeline.commands.evaluate import evaluate
from pipeline.commands.export import export
from pipeline.commands.fetch import fetch
from pipeline.commands.import_ import import_
from pipeline.commands.init import init
from pipeline.commands.networks import networks
from pipeline.commands.new import new
from pipeline.commands.paper_check import paper_check
from pipeline.commands.plan import plan
from pipeline.commands.predict import predict
from pipeline.commands.pseudo_depth import pseudo_depth
from pipeline.commands.recipes import recipes
from pipeline.commands.report import report
from pipeline.commands.run import run
from pipeline.commands.runs import runs
from pipeline.commands.schedules import schedules
from pipeline.commands.select import select
from pipeline.commands.table import table
from pipeline.commands.teach import teach

COMMANDS: list[click.Command] = [
    init, import_, demo, pseudo_depth, run, plan, table, evaluate, compare, report, runs, predict, export, benchmark,
    teach, fetch, cache, select, datasets, networks, schedules, estimators, recipes, check_network, new, advise,
    paper_check, doctor,
]  # fmt: skip
