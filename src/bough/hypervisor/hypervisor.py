"""All use cases of a BOUGH_HOME, with the necessary collaborators."""

from __future__ import annotations

from bough.forks.loaded import LoadedForks
from bough.forks.pool import Pool
from bough.forks.prewarm import Prewarming
from bough.forks.process_image.availability import Availability
from bough.forks.saved_states import SavedStates
from bough.forks.standby import StandbyMachines
from bough.hypervisor.agent_disks import AgentDisks
from bough.hypervisor.artifacts import Artifacts
from bough.hypervisor.auditing import Auditing
from bough.hypervisor.booted_snapshots import BootedSnapshots
from bough.hypervisor.bundles import Bundles
from bough.hypervisor.captures import Captures
from bough.hypervisor.creation import Creation
from bough.hypervisor.differences import Differences
from bough.hypervisor.faults import Faults
from bough.hypervisor.fork_maker import ForkMaker
from bough.hypervisor.forking import Forking
from bough.hypervisor.half_made import HalfMade
from bough.hypervisor.image_source import ImageSource
from bough.hypervisor.images import Images
from bough.hypervisor.import_guests import ImportGuests
from bough.hypervisor.inventory import Inventory
from bough.hypervisor.lifecycle import Lifecycle
from bough.hypervisor.lifetimes import Lifetimes
from bough.hypervisor.link_faults import LinkFaults
from bough.hypervisor.machine_faults import MachineFaults
from bough.hypervisor.machine_settings import MachineSettings
from bough.hypervisor.names import Names
from bough.hypervisor.network_changes import NetworkChanges
from bough.hypervisor.networks import Networks
from bough.hypervisor.opening import Opening
from bough.hypervisor.power_loss import PowerLoss
from bough.hypervisor.preparation import Preparation
from bough.hypervisor.projects.branches import ProjectBranches
from bough.hypervisor.projects.bundles import ProjectBundles
from bough.hypervisor.projects.changes import MachineChanges
from bough.hypervisor.projects.down import ProjectDown
from bough.hypervisor.projects.forks import ProjectForks
from bough.hypervisor.projects.health import ProjectHealth
from bough.hypervisor.projects.holds import ProjectHolds
from bough.hypervisor.projects.images import ProjectImages
from bough.hypervisor.projects.machines import ProjectMachines
from bough.hypervisor.projects.networks import ProjectNetworks
from bough.hypervisor.projects.operations import ProjectOperations
from bough.hypervisor.projects.plan import ProjectPlanner
from bough.hypervisor.projects.registry import Projects
from bough.hypervisor.projects.removal import ProjectRemoval
from bough.hypervisor.projects.snapshots import ProjectSnapshots
from bough.hypervisor.projects.up import ProjectUp
from bough.hypervisor.running import Running
from bough.hypervisor.snapshot_disks import SnapshotDisks
from bough.hypervisor.snapshot_keeper import SnapshotKeeper
from bough.hypervisor.snapshots import Snapshots
from bough.hypervisor.waiting_machines import WaitingMachines
from bough.images.agent_disk.store import AgentDiskStore
from bough.images.artifact_pull import ImageArtifacts
from bough.images.catalogue import Catalogues
from bough.images.oci.boot_kit.store import BootKitStore
from bough.images.oci.kept_layouts import KeptLayouts
from bough.images.oci.pull import ContainerPull
from bough.images.store import ImageStore
from bough.machines.demand import DEMAND
from bough.machines.events import Events
from bough.machines.machine import Machine
from bough.networks.store import NetworkStore
from bough.paths import Home
from bough.projects.health import HealthChecks
from bough.projects.restore_notes import RestoreNotes
from bough.projects.snapshot import ProjectSnapshotStore
from bough.projects.store import ProjectStore
from bough.snapshots.tree import SnapshotTree


class Hypervisor:
    """The use cases of one home. Call `opening.open()` before the first use, and `opening.close()` at the
    end.

    Attributes:
        machines: look machines up. lifetimes: delete, hold and discard machines.
        creation, lifecycle, running, forking, snapshots, bundles, artifacts, images, differences, auditing:
            the use cases.
        networks: the networks between machines. network_changes: connect machines, and disconnect them.
        projects: look projects up. project_up, project_down, project_health: their use cases.
        project_operations: one operation at a time for each project.
        faults: what is broken on purpose. link_faults, machine_faults, power_loss: how it is broken.
        process_images: whether they may be used.
        standby: the standby machines that users asked for.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.events = events = Events()
        tree, half_made, store, catalogues = (
            SnapshotTree(home),
            HalfMade(),
            ImageStore(home),
            Catalogues(home),
        )
        networks, project_store = NetworkStore(home), ProjectStore(home)
        self.machines = machines = Inventory(home, events, tree, networks, project_store)
        agent_disks = AgentDisks(AgentDiskStore(home), half_made, machines, tree.store)
        machines.choose_agent_disk = agent_disks.for_boot
        machines.after_collect.append(agent_disks.collect)
        self.networks = Networks(home, events, networks, machines, project_store)
        self.projects = projects = Projects(project_store, machines, networks)
        self.network_changes = NetworkChanges(networks, self.networks)
        self.faults = Faults(home.faults, events, machines, networks)
        self.link_faults = LinkFaults(self.faults, self.networks, machines)
        self.machine_faults = MachineFaults(self.faults, machines)
        self.networks.faults_of = self.link_faults.rules_of
        self.networks.after_delete.append(lambda network: self.faults.forget_network(network.id))
        machines.before_start.append(self.networks.join)
        machines.after_removal.append(self.networks.forget)
        self.lifetimes = lifetimes = Lifetimes(machines, half_made)
        names = Names(machines, self._give_way)
        keeper = SnapshotKeeper(tree, machines, store)
        kept = KeptLayouts(home.downloads)
        containers = ContainerPull(store, BootKitStore(home), [ImageArtifacts(store, kept)], kept=kept)
        source = ImageSource(home, store, catalogues, half_made, containers)
        self.creation = Creation(
            home, events, store, source, machines, names, lifetimes, half_made, networks, agent_disks
        )
        booted = BootedSnapshots(home, source, self.creation, names, keeper, lifetimes, agent_disks)
        maker = ForkMaker(home, events, tree, machines, names, lifetimes)

        pool = Pool()
        states = SavedStates(tree, pool)
        self.process_images = availability = Availability(home)
        prepare = Preparation(machines, lifetimes, keeper, booted, states, maker, availability)
        discard = lifetimes.delete_standby
        self.standby = standby = StandbyMachines(
            home.standby, pool, prepare.make_standby, prepare.wake_standby, discard
        )
        prewarming = Prewarming(prepare.prewarm, pool, DEMAND, is_on=availability.off is None)
        loaded = LoadedForks(prepare.load_fork, discard, pool, prewarming)
        keeper.on_drop.append(loaded.forget)

        waiting = WaitingMachines(standby, loaded, names, lifetimes, events)
        self.lifecycle = Lifecycle(home, names, half_made)
        self.machine_settings = MachineSettings(home, machines, networks, projects)
        self.running = Running(
            store, self.creation, names, lifetimes, keeper, booted, states, maker, waiting, standby, loaded
        )
        self.forking = Forking(
            machines, lifetimes, keeper, states, maker, waiting, standby, loaded, prewarming
        )
        self.snapshots = Snapshots(machines, keeper, states, standby, loaded, events)
        self.power_loss = PowerLoss(home, self.faults, machines, self.snapshots)
        self.bundles = Bundles(
            home, events, store, agent_disks.store, machines, names, keeper, maker, half_made
        )
        self.artifacts = Artifacts(home, store, source, self.bundles, kept, half_made)
        self.images = Images(
            home,
            source,
            store,
            catalogues,
            self.creation,
            machines,
            lifetimes,
            keeper,
            loaded,
            half_made,
            ImportGuests(store, source, agent_disks.store),
        )
        snapshot_disks = SnapshotDisks(keeper, states, maker, lifetimes)
        self.differences = Differences(home, store, machines, keeper, snapshot_disks)
        self.captures = Captures(
            home,
            store,
            source,
            self.creation,
            machines,
            lifetimes,
            half_made,
            ImportGuests(store, source, agent_disks.store),
        )
        self.auditing = Auditing(home, machines, lifetimes, half_made)
        self.project_operations = operations = ProjectOperations()
        self.project_removal = ProjectRemoval(self.projects, operations, machines, lifetimes, self.networks)
        machines.after_removal.append(self.project_removal.follow)
        self.project_snapshots = ProjectSnapshots(
            ProjectSnapshotStore(home), projects, operations, self.networks, keeper, events
        )
        self.project_forks = ProjectForks(
            self.projects,
            self.project_snapshots,
            networks,
            self.project_removal,
            states,
            maker,
            names,
            lifetimes,
            prewarming,
            events,
        )
        self.project_snapshots.on_taken.append(self.project_forks.offer)
        self.project_branches = ProjectBranches(
            self.projects,
            self.project_snapshots,
            operations,
            self.lifecycle,
            tree,
            states,
            RestoreNotes(home),
            machines.collect,
        )
        self.project_bundles = ProjectBundles(
            self.projects,
            self.project_snapshots,
            self.project_forks,
            keeper,
            store,
            agent_disks.store,
            half_made,
        )
        self.opening = Opening(
            home,
            events,
            machines,
            lifetimes,
            keeper,
            pool,
            standby,
            loaded,
            self.networks,
            projects,
            self.faults,
            self.project_snapshots,
            self.project_branches,
            self.project_removal,
        )
        self._connect_projects(source)

    def _connect_projects(self, source: ImageSource) -> None:
        """Make the use cases of projects, which use most of the others."""
        projects, lifecycle = self.projects, self.lifecycle
        operations = self.project_operations
        networks, checks = ProjectNetworks(projects, self.networks), HealthChecks()
        self.project_health = ProjectHealth(projects, checks)
        self.project_holds = ProjectHolds(projects, self.lifetimes)
        machines = ProjectMachines(
            projects,
            self.running,
            lifecycle,
            self.lifetimes,
            MachineChanges(self.home, lifecycle),
            checks,
        )
        self.project_up = ProjectUp(
            projects,
            ProjectPlanner(projects, networks, self.machines),
            ProjectImages(self.images, source),
            networks,
            machines,
            operations,
            self.project_removal,
            self.project_holds,
            self.events,
        )
        self.project_down = ProjectDown(
            projects, networks, machines, lifecycle, operations, self.project_removal, self.events
        )

    def _give_way(self, machine: Machine) -> None:
        """Discard a standby machine whose name a user asks for."""
        self.standby.take(lambda one: one is machine)
        self.lifetimes.unpin(machine)
        self.lifetimes.discard(machine)
