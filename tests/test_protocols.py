"""Whatever stands in for a protocol, part or double, has all of its members, to be called as the protocol says."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import pytest

from benchmarks import datapath_parts
from tests import doubles, generator_double, plain_backend, test_judge, test_offline, test_supervisor
from tests.test_data_loader import Numbers
from yatt import protocols, supervisor
from yatt.cluster import clock, crew, generator, media, rank
from yatt.controller import conversation, peers
from yatt.data import formats, rows
from yatt.data.loader import Loader
from yatt.environments import chat, hosted
from yatt.faces import train
from yatt.generation.stepped import SteppedGenerator
from yatt.reward import engine as reward_engine
from yatt.reward import judge, mixed, pool, remote
from yatt.simulation import engine, loop, network, ranks, scorer, world
from yatt.training import model
from yatt.training.megatron import backend as megatron

IMPLEMENTATIONS: dict[type, tuple[type, ...]] = {
    protocols.Generator: (
        SteppedGenerator,
        generator.RemoteGenerator,
        engine.SimulatedGenerator,
        generator_double.DoubleGenerator,
        doubles.ScriptedGenerator,
        datapath_parts.Engine,
    ),
    protocols.Scorer: (
        pool.FunctionScorer,
        judge.JudgeScorer,
        reward_engine.ClassifierScorer,
        mixed.MixedScorer,
        scorer.SimulatedScorer,
        doubles.ScriptedScorer,
        datapath_parts.Reward,
    ),
    protocols.Trainer: (rank.RemoteTrainer, ranks.SimulatedTrainer, doubles.RecordingTrainer),
    protocols.Source: (Loader,),
    protocols.Peers: (peers.HubPeers, network.SimulatedPeers),
    protocols.Chat: (chat.Chat,),
    protocols.Talk: (conversation.Conversation,),
    protocols.Environment: (hosted.HostedEnvironment,),
    protocols.MediaStore: (media.RayMediaStore,),
    protocols.Clock: (clock.WallClock, loop.VirtualClock, doubles.Ticks),
    supervisor.Crew: (crew.ClusterCrew, train.CheckpointingCrew, world.World, test_supervisor.Crew),
    supervisor.Journal: (train.RunJournal, test_supervisor.Journal),
    rows.RowSource: (rows.JsonlRows, rows.JoinedRows, formats.ListRows, world.EndlessRows, doubles.Numbers, Numbers),
    judge.Asker: (reward_engine.EngineAsker, remote.RemoteAsker, test_judge.Scripted),
    model.Model: (plain_backend.PlainModel,),
    model.Learner: (plain_backend.PlainLearner,),
    model.Backend: (plain_backend.PlainBackend, megatron.MegatronBackend),
}
"""Of each protocol, what implements it."""
LACKS = {crew.ClusterCrew: {"save"}}
"""What is a base of implementations, and what it leaves to them."""


def members(protocol: type) -> Iterator[tuple[str, Any]]:
    """Its methods and properties, those of the protocols that it extends among them."""
    for base in protocol.__mro__[:-1]:
        for name, member in vars(base).items():
            if isinstance(member, (FunctionType, property)) and (name == "__len__" or not name.startswith("_")):
                yield name, member


def lacking(protocol: type, implementation: type) -> list[str]:
    """Where it cannot stand in for the protocol."""
    wrong = []
    makers = [base.__init__ for base in implementation.__mro__[:-1] if "__init__" in vars(base)]
    made = "".join(inspect.getsource(maker) for maker in makers if isinstance(maker, FunctionType))
    for name, wanted in members(protocol):
        given = inspect.getattr_static(implementation, name, None)
        if given is None and f"self.{name}" not in made:
            wrong.append(f"{name} is missing")
        elif isinstance(given, FunctionType) and isinstance(wanted, FunctionType):
            wrong += [f"{name}{why}" for why in differences(wanted, given)]
    return wrong


def differences(wanted: FunctionType, given: FunctionType) -> Iterator[str]:
    """How calls of the one do not fit the other."""
    if inspect.iscoroutinefunction(wanted) != inspect.iscoroutinefunction(given):
        yield ": one is awaited, the other is not"
    ours, theirs = inspect.signature(wanted).parameters, inspect.signature(given).parameters
    takes_all = any(p.kind is p.VAR_POSITIONAL for p in theirs.values())
    takes_names = any(p.kind is p.VAR_KEYWORD for p in theirs.values())
    for place, (name, parameter) in enumerate(ours.items()):
        positional = list(theirs)[place : place + 1] if parameter.kind is not parameter.KEYWORD_ONLY else []
        if name not in theirs and not (takes_names and parameter.kind is parameter.KEYWORD_ONLY) and not takes_all:
            yield f" takes no {name}"
        elif name in theirs and positional not in ([], [name]):
            yield f" takes {name} elsewhere"
        elif name in theirs and parameter.default is not parameter.empty and theirs[name].default is parameter.empty:
            yield f" demands {name}"
    named = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    for name, parameter in theirs.items():
        if name not in ours and parameter.default is parameter.empty and parameter.kind not in named:
            yield f" demands {name}"


@pytest.mark.parametrize(
    ("protocol", "implementation"), [(p, one) for p, several in IMPLEMENTATIONS.items() for one in several]
)
def test_an_implementation_has_every_member(protocol, implementation):
    left = LACKS.get(implementation, set())
    assert [why for why in lacking(protocol, implementation) if why.split(" is missing")[0] not in left] == []


def test_every_protocol_of_the_heart_has_an_implementation_here():
    declared = {
        one for one in vars(protocols).values() if inspect.isclass(one) and one.__module__ == protocols.__name__
    }
    assert declared <= IMPLEMENTATIONS.keys()


def test_what_is_wrong_is_seen():
    class Short:
        async def now(self):
            return 0.0

        async def sleep(self, seconds, patience):
            pass

    class Bare:
        def __init__(self): ...

        def now(self):
            return 0.0

        async def sleep(self):
            pass

    assert lacking(protocols.Clock, Short) == ["now: one is awaited, the other is not", "sleep demands patience"]
    assert lacking(protocols.Clock, Bare) == ["sleep takes no seconds"]
    assert lacking(protocols.Clock, test_offline.Rows) == ["now is missing", "sleep is missing"]
