//! Which control group edge may divide among its workers: decided from what the kernel says of edge's own.
//!
//! Only version 2 counts. A service manager or a container gives a group away as a whole; below it edge makes a leaf for itself
//! and one for each worker, because a group that limits others may hold no process of its own.

use std::path::{Path, PathBuf};

use crate::name::WorkerId;

/// What the kernel says of a control group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// It is the machine's own root, which nobody can give away.
    pub(super) root: bool,
    /// The service manager that made it says that it was not given away: it would take the controllers back at any time.
    pub(super) withheld: bool,
    /// Edge may make groups below it and move its processes there.
    pub(super) writable: bool,
    /// Nobody but edge runs in it.
    pub(super) alone: bool,
}

/// Why there are no control groups for workers, or none that limit memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Version 1, or none.
    #[error(
        "no control groups of version 2 are mounted here: boot with `systemd.unified_cgroup_hierarchy=1`"
    )]
    NotMounted,
    /// What is mounted does not show edge's own.
    #[error(
        "edge's control group lies outside of what is mounted here: give the container a control group namespace of its own"
    )]
    Outside,
    /// Not given away by anybody.
    #[error(
        "edge runs in the machine's root control group: start it as a service with `Delegate=yes`, such as deploy/edge.service"
    )]
    Root,
    /// Not edge's.
    #[error("the control group {} is not edge's to divide: a service needs `Delegate=yes`, a container a writable /sys/fs/cgroup \
             (`docker run --security-opt writable-cgroups=true`, `podman run --security-opt unmask=/sys/fs/cgroup`)", .0.display())]
    NotDelegated(PathBuf),
    /// Somebody else's processes would have to move.
    #[error("other processes run in edge's control group {}: start edge as a service of its own with `Delegate=yes`, or as the \
             first process of a container", .0.display())]
    Shared(PathBuf),
    /// Groups can be made, but they do not limit memory.
    #[error("the control group {} has no memory controller: whoever starts edge has to delegate it too", .0.display())]
    NoMemory(PathBuf),
    /// The kernel refused.
    #[error("the control group {} cannot be divided: {reason}", dir.display())]
    Failed {
        /// Which.
        dir: PathBuf,
        /// What it said.
        reason: String,
    },
}

/// The directory of the group that `groups` (`/proc/self/cgroup`) names, under the mounts of `mounts` (`/proc/self/mountinfo`).
pub(super) fn own_group(groups: &str, mounts: &str) -> Result<PathBuf, Refusal> {
    let mut mounted = mounts.lines().filter_map(mount).peekable();
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let (Some(path), Some(_)) = (path, mounted.peek()) else { return Err(Refusal::NotMounted) };
    // A namespace shows groups outside of it as `/..`; a mount may show a part of the tree only.
    let inside = |(root, place): (&str, &str)| {
        let below = Path::new(path).strip_prefix(root).ok()?;
        (!path.contains("/..")).then(|| Path::new(place).join(below))
    };
    mounted.find_map(inside).ok_or(Refusal::Outside)
}

/// Root and place of a mount of version 2.
fn mount(line: &str) -> Option<(&str, &str)> {
    let (place, kind) = line.split_once(" - ")?;
    let mut fields = place.split(' ').skip(3);
    kind.starts_with("cgroup2 ").then_some((fields.next()?, fields.next()?))
}

/// Whether edge may divide the group in `dir`.
pub(super) fn judge(dir: &Path, seen: Seen) -> Result<(), Refusal> {
    match seen {
        Seen { root: true, .. } => Err(Refusal::Root),
        Seen { withheld: true, .. } | Seen { writable: false, .. } => {
            Err(Refusal::NotDelegated(dir.to_owned()))
        }
        Seen { alone: false, .. } => Err(Refusal::Shared(dir.to_owned())),
        Seen { root: false, withheld: false, writable: true, alone: true } => Ok(()),
    }
}

/// Name of a worker's leaf: the edge it belongs to, by process id and start time, then the worker.
pub(super) fn leaf_name((pid, start): (u32, u64), id: &WorkerId) -> String {
    format!("{pid}-{start}.{}.{}.{}", id.app, id.slot, id.incarnation)
}

/// The edge a leaf belongs to, if `name` is that of a leaf.
pub(super) fn owner_of_leaf(name: &str) -> Option<(u32, u64)> {
    let (pid, start) = name.split_once('.')?.0.split_once('-')?;
    Some((pid.parse().ok()?, start.parse().ok()?))
}

/// A number in one of the kernel's files of `name number` lines.
pub(super) fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "30 23 0:25 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                          31 30 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                          32 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
    const PART: &str = "40 23 0:26 /docker/ab /sys/fs/cgroup ro - cgroup2 cgroup ro\n";

    #[test]
    fn edges_own_group_is_found_where_it_is_mounted() {
        for (groups, mounts, expected) in [
            ("0::/system.slice/edge.service\n", UNIFIED, Ok("/sys/fs/cgroup/system.slice/edge.service")),
            ("0::/\n", UNIFIED, Ok("/sys/fs/cgroup/")),
            ("4:memory:/x\n0::/y\n", HYBRID, Ok("/sys/fs/cgroup/unified/y")),
            ("0::/docker/ab/z\n", PART, Ok("/sys/fs/cgroup/z")),
            ("0::/docker/abc\n", PART, Err(Refusal::Outside)),
            ("0::/../edge.service\n", UNIFIED, Err(Refusal::Outside)),
            ("4:memory:/x\n", HYBRID, Err(Refusal::NotMounted)),
            ("0::/y\n", "", Err(Refusal::NotMounted)),
            (
                "0::/y\n",
                "32 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
                Err(Refusal::NotMounted),
            ),
        ] {
            assert_eq!(own_group(groups, mounts), expected.map(PathBuf::from), "{groups}{mounts}");
        }
    }

    #[test]
    fn a_group_is_divided_only_if_it_was_given_away_and_nobody_else_is_in_it() {
        let dir = Path::new("/sys/fs/cgroup/x");
        let judged = |root, writable, alone| judge(dir, Seen { root, withheld: false, writable, alone });
        let withheld = Seen { root: false, withheld: true, writable: true, alone: true };
        assert_eq!(judge(dir, withheld), Err(Refusal::NotDelegated(dir.into())));
        assert_eq!(judged(false, true, true), Ok(()));
        assert_eq!(judged(true, true, true), Err(Refusal::Root));
        assert_eq!(judged(false, false, true), Err(Refusal::NotDelegated(dir.into())));
        assert_eq!(judged(false, false, false), Err(Refusal::NotDelegated(dir.into())));
        assert_eq!(judged(false, true, false), Err(Refusal::Shared(dir.into())));
    }

    #[test]
    fn a_leaf_tells_whose_it_is_and_nothing_else_is_a_leaf() {
        let id = WorkerId { app: "a-b".parse().expect("valid"), slot: 3, incarnation: 12 };
        let name = leaf_name((812, 4711), &id);
        assert_eq!((name.as_str(), owner_of_leaf(&name)), ("812-4711.a-b.3.12", Some((812, 4711))));
        for other in ["edge", "812-4711", "a-1.x", "session-1.scope", "", ".", "-.a"] {
            assert_eq!(owner_of_leaf(other), None, "{other}");
        }
    }

    #[test]
    fn numbers_are_found_by_their_whole_name() {
        let events = "low 0\nhigh 3\nmax 17\noom 2\noom_kill 1\noom_group_kill 4\n";
        for (name, value) in
            [("oom_kill", Some(1)), ("oom", Some(2)), ("max", Some(17)), ("oom_", None), ("none", None)]
        {
            assert_eq!(number(events, name), value, "{name}");
        }
        assert_eq!(number("oom_kill x\n", "oom_kill"), None);
    }
}
