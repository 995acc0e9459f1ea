"""Links between nodes, and the time of a controller's own processor: each does one thing at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np

from yatt.controller.peers import Hub, HubPeers
from yatt.simulation.costs import ControllerCosts
from yatt.simulation.engine import Log, SimulatedGenerator
from yatt.types import Completion, Media, Request, SampleKey

NODE_DEVICES = 8
COMPLETION_BYTES = 8  # of a response token on its way to a controller: int32 token, float32 logprob
TOKEN_BYTES = 4
MESSAGE_BYTES = 64  # of a value that is no array


class Lane:
    """Something done one at a time, first come, first served."""

    def __init__(self) -> None:
        self.free = 0.0

    def take(self, start: float, seconds: float) -> float:
        """When it will be done, if asked for at `start`."""
        self.free = max(self.free, start) + seconds
        return self.free


class Node:
    """A machine: its link in both directions, and its storage."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.out, self.into, self.storage = Lane(), Lane(), Lane()


class Network:
    """Messages from node to node. Nothing is spent within a node."""

    def __init__(self, costs: ControllerCosts, nodes: int, log: Log) -> None:
        self.costs = costs
        self.nodes = [Node(f"node {number}") for number in range(nodes)]
        self._by_name = {node.name: node for node in self.nodes}
        self._log = log
        self._delays: list[float] = []

    def node(self, name: str) -> Node:
        return self._by_name[name]

    def of_device(self, device: int) -> Node:
        return self.nodes[device // NODE_DEVICES]

    def delay(self, seconds: float) -> None:
        """The next message between nodes comes so much later."""
        self._delays.append(seconds)

    def send(self, source: Node, target: Node, nbytes: int) -> float:
        """When a message sent now will have arrived: it goes through the sender's link, then the receiver's as it
        comes, each in the order of sending."""
        now = asyncio.get_running_loop().time()
        if source is target:
            return now
        seconds = nbytes / self.costs.link_bandwidth
        left = source.out.take(now, seconds)
        arrived = max(left, target.into.take(left - seconds, seconds)) + self.costs.link_latency
        if self._delays:
            delay = self._delays.pop(0)
            self._log(source.name, "delayed", target.name, delay)
            arrived += delay
        return arrived


class Image:
    """The bytes of one prompt's images: when they have been read, and when they are where."""

    def __init__(self, ready: float) -> None:
        self.ready = ready
        self.at: dict[str, float] = {}


class Site:
    """Where a controller stands: everything it sends and receives goes through here and is counted."""

    def __init__(self, network: Network, index: int, node: Node) -> None:
        self.network, self.index, self.node = network, index, node
        self.cpu = Lane()
        self.sent = self.received = 0

    def read(self, nbytes: int) -> Media:
        """Read a prompt's images, once."""
        now = asyncio.get_running_loop().time()
        return Media(
            handle=Image(self.node.storage.take(now, nbytes / self.network.costs.storage_bandwidth)), nbytes=nbytes
        )

    def send(self, target: Node, nbytes: int, media: Sequence[Media] = ()) -> float:
        """When it will have arrived, with images that are not on that node yet."""
        arrived = self._post(target, nbytes)
        for one in media:
            image: Image = one.handle
            if target.name not in image.at:
                image.at[target.name] = max(image.ready, self._post(target, one.nbytes))
            arrived = max(arrived, image.at[target.name])
        return arrived

    def _post(self, target: Node, nbytes: int) -> float:
        if target is not self.node:
            self.sent += nbytes
        return self.network.send(self.node, target, nbytes)

    async def receive(self, source: Node, completions: Sequence[Completion]) -> None:
        """Take in responses: the link first, then the processor."""
        nbytes = COMPLETION_BYTES * sum(len(c.tokens) for c in completions)
        if source is not self.node:
            self.received += nbytes
        arrived = self.network.send(source, self.node, nbytes)
        await until(self.cpu.take(arrived, self.network.costs.per_response * len(completions)))

    async def hear_from(self, source: Node, nbytes: int) -> None:
        """Take in a message that another node sends now."""
        if source is not self.node:
            self.received += nbytes
        await until(self.network.send(source, self.node, nbytes))


class DistantHub:
    """`yatt.controller.peers.Meeting`: the hub on `host`, seen from a site."""

    def __init__(self, site: Site, hub: Hub, host: Node) -> None:
        self._site, self._hub, self._host = site, hub, host

    async def gather(self, tag: str, index: int, value: Any) -> list[Any]:
        nbytes = size(value)
        await until(self._site.send(self._host, nbytes))
        brought = await self._hub.gather(tag, index, (value, nbytes))
        await self._site.hear_from(self._host, sum(size for _, size in brought))
        return [value for value, _ in brought]

    async def hear(self, seen: int) -> tuple[int, Any]:
        news = await self._hub.hear(seen)
        await self._site.hear_from(self._host, MESSAGE_BYTES)
        return news


class SimulatedPeers(HubPeers):
    """Peers through the hub on `host`. The report of a step takes its writing as well."""

    def __init__(self, site: Site, count: int, hub: Hub, host: Node) -> None:
        super().__init__(site.index, count, DistantHub(site, hub, host), None if site.index else hub)
        self._per_step = site.network.costs.per_step

    async def all_gather(self, tag: str, value: Any) -> list[Any]:
        if tag.startswith("report/"):
            await asyncio.sleep(self._per_step)
        return await super().all_gather(tag, value)


class RemoteGenerator:
    """A generator seen from a controller: requests and responses cross the network, control takes no time."""

    def __init__(self, engine: SimulatedGenerator, site: Site) -> None:
        self._engine, self._site = engine, site
        self._node = site.network.node(engine.node)
        self._delivered = 0.0
        self.slots, self.node = engine.slots, engine.node
        self.pause, self.resume, self.sleep, self.wake = engine.pause, engine.resume, engine.sleep, engine.wake
        self.load, self.pulse, self.close = engine.load, engine.pulse, engine.close

    async def generate(self, requests: Sequence[Request]) -> AsyncGenerator[list[Completion], None]:
        prompts = {id(request.tokens): TOKEN_BYTES * len(request.tokens) for request in requests}
        media = {id(one.handle): one for request in requests for one in request.media}
        arrived = self._site.send(self._node, sum(prompts.values()), tuple(media.values()))
        self._delivered = max(self._delivered, arrived)
        await until(arrived)
        async with aclosing(self._engine.generate(requests)) as stream:
            async for completions in stream:
                await self._site.receive(self._node, completions)
                yield completions

    async def abort(self, keys: Sequence[SampleKey]) -> None:
        """Calls of one controller arrive in order: what it asked for before is there when this comes."""
        await until(self._delivered)
        await self._engine.abort(keys)


async def until(moment: float) -> None:
    """Return at this moment of the running loop; at once where it has passed."""
    loop = asyncio.get_running_loop()
    if moment > loop.time():
        await asyncio.sleep(moment - loop.time())


def size(value: Any) -> int:
    """Bytes of what controllers tell each other."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, (list, tuple)):
        return sum(map(size, value)) + MESSAGE_BYTES
    return MESSAGE_BYTES
