"""What goes wrong in a run: drawn from the seed, one fault after another, until all is healed."""

from tests.scenarios.cluster import Cluster
from tests.scenarios.host import Host


class Faults:
    """Draws faults for a cluster, and heals everything at the end."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._world, self._chance = cluster, cluster.world, cluster.world.chance
        self.count: dict[str, int] = {}
        self._end = 0.0
        self._kinds = (
            (self._crash_engine, 5),
            (self._hang_engine, 2),
            (self._kill_agent, 4),
            (self._reboot, 3),
            (self._suspend_node, 3),
            (self._cut, 4),
            (self._cut_one_way, 3),
            (self._kill_controller, 2),
            (self._suspend_controller, 3),
            (self._isolate_controller, 1),
            (self._stop_database, 1),
            (self._jump, 1),
            (self._operator, 5),
        )

    def start(self, until: float) -> None:
        """Begin; nothing new goes wrong after `until`."""
        self._end = until
        self._next()

    def _next(self) -> None:
        wait_s = self._chance.expovariate(self._cluster.shape.faults_per_s)
        if self._world.now + wait_s < self._end:
            self._world.at(self._world.now + wait_s, None, self._strike)

    def _strike(self) -> None:
        kinds, weights = zip(*self._kinds, strict=True)
        kind = self._chance.choices(kinds, weights)[0]
        name = kind.__name__.strip("_")
        self.count[name] = self.count.get(name, 0) + 1
        kind()
        self._next()

    def _later(self, low: float, high: float) -> float:
        """Return an instant so many seconds from now, before the quiet end."""
        return min(self._end, self._world.now + self._chance.uniform(low, high))

    def _host(self) -> Host:
        return self._chance.choice(list(self._cluster.hosts.values()))

    def _engine(self) -> tuple[Host, str] | None:
        host = self._host()
        names = sorted(host.engines)
        return (host, self._chance.choice(names)) if names and self._world.now >= host.asleep_until else None

    def _crash_engine(self) -> None:
        found = self._engine()
        if found is not None:
            self._world.say(f"{found[1]} crashes")
            found[0].crash(found[1])  # type: ignore[arg-type]

    def _hang_engine(self) -> None:
        found = self._engine()
        if found is None:
            return
        host, engine = found[0], found[0].engines[found[1]]  # type: ignore[index]
        engine.is_hung = True
        heals_after = self._chance.choice((2.5, 20.0, 400.0))

        def probe() -> None:
            if host.agent is not None:
                host.agent.probed(engine)

        def heal() -> None:
            engine.is_hung = False
            probe()

        for wait_s in (1.0, 2.0, 3.0, 30.0, 125.0):
            host.after(wait_s, probe)
        self._world.at(self._later(heals_after, heals_after), host, heal)

    def _kill_agent(self) -> None:
        host = self._host()
        if host.agent is None:
            return
        self._world.say(f"the agent of {host.node_id} is killed")
        host.kill_agent()
        host.after(self._chance.choice((0.5, 3.0, 20.0)), self._boot, host)

    def _boot(self, host: Host) -> None:
        if host.agent is None:
            self._cluster.boot(host)

    def _reboot(self) -> None:
        host = self._host()
        if host.agent is None:
            return
        host.reboot()
        host.after(2.0 + self._chance.random() * 25.0, self._boot, host)

    def _suspend_node(self) -> None:
        host = self._host()
        seconds = self._chance.choice((1.0, 5.0, 9.0, 20.0, 60.0))
        self._world.say(f"{host.node_id} is suspended for {seconds} s")
        host.sleep(self._later(seconds, seconds) - self._world.now)

    def _cut_lines(self, ways: set[tuple[str, str]], seconds: float) -> None:
        network = self._cluster.network
        network.cut |= ways
        self._world.say(f"cut {sorted(ways)[:3]} for {seconds:.0f} s")
        self._world.at(self._later(seconds, seconds), None, network.heal, ways)

    def _cut(self) -> None:
        count = self._chance.choice((1, 1, 1, 2, max(1, len(self._cluster.hosts) // 2)))
        names = self._chance.sample(sorted(self._cluster.hosts), min(count, len(self._cluster.hosts)))
        ways = {(str(name), "*") for name in names}
        ways |= {(server, str(name)) for name in names for server in self._cluster.controllers}
        self._cut_lines(ways, self._chance.choice((3.0, 8.0, 15.0, 40.0)))

    def _cut_one_way(self) -> None:
        name = str(self._host().node_id)
        server = self._chance.choice(list(self._cluster.controllers))
        way = self._chance.choice([(name, "*"), (server, name), (name, server)])
        self._cut_lines({way}, self._chance.choice((3.0, 12.0, 30.0)))

    def _kill_controller(self) -> None:
        leading = self._cluster.leading()
        if leading is not None:
            leading.die()

    def _suspend_controller(self) -> None:
        leading = self._cluster.leading()
        if leading is not None:
            seconds = self._chance.choice((1.0, 4.0, 9.0, 15.0, 30.0))
            self._world.say(f"{leading.name} is suspended for {seconds} s")
            leading.asleep_until = self._later(seconds, seconds)

    def _isolate_controller(self) -> None:
        leading = self._cluster.leading()
        if leading is not None:
            ways = {(leading.name, str(name)) for name in self._cluster.hosts} | {(leading.name, "*")}
            self._cut_lines(ways, self._chance.choice((5.0, 14.0, 40.0)))

    def _stop_database(self) -> None:
        database = self._cluster.database
        if database.is_up:
            self._world.say("the database goes away")
            database.is_up = False
            self._world.at(self._later(2.0, 60.0), None, self._start_database)

    def _start_database(self) -> None:
        self._cluster.database.is_up = True
        self._world.say("the database is back")

    def _jump(self) -> None:
        for controller in self._cluster.controllers.values():
            controller.wall_offset_s += self._chance.uniform(-3600.0, 3600.0)

    def _operator(self) -> None:
        cluster = self._cluster
        if not cluster.database.is_up:
            return
        names = sorted(name for name, row in cluster.database.deployments.items() if not row.is_deleting)
        act = self._chance.random()
        if act < 0.2 or not names:
            cluster.deploy(f"dep_x{self._world.events}", self._chance.randint(1, 2))
        elif act < 0.4 and len(names) > 1:
            cluster.delete(self._chance.choice(names))
        elif act < 0.7:
            cluster.change(self._chance.choice(names), replicas=self._chance.randint(0, 3))
        else:
            cluster.change(self._chance.choice(names), is_new=True)
