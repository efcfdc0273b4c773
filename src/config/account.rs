//! Who workers run as: names and numbers looked up in the system's accounts.

use std::ffi::CString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use crate::config::model::Account;
use crate::config::surroundings::Surroundings;

/// Why an account cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// No such user. The name is not told: it may come from a variable.
    #[error("there is no such user")]
    NoUser,
    /// No such group.
    #[error("there is no such group")]
    NoGroup,
    /// Root owns the working directory, and the account that would do instead is missing.
    #[error("root owns the working directory and there is no user `nobody`: set `user`")]
    NoNobody,
    /// A number without an account needs a group.
    #[error("user {0} has no account, so its group is unknown: set `group`")]
    NoPrimaryGroup(u32),
    /// Edge is not root.
    #[error("only root can run workers as another user or group")]
    NotRoot,
    /// The system could not answer.
    #[error("cannot look it up: {0}")]
    Lookup(nix::Error),
}

/// The account for what the operator wrote; `working_dir` decides where nothing was written and edge is root.
pub fn resolve(
    user: Option<&str>,
    group: Option<&str>,
    working_dir: &Path,
    surroundings: &Surroundings,
) -> Result<Account, AccountError> {
    let gid = group.map(find_group).transpose()?;
    let (user, fallback) = match user {
        Some(user) => (find_user(user)?, None),
        None if surroundings.is_root() => owner_of(working_dir)?,
        None => (Identity::Number(surroundings.uid), Some(surroundings.gid)),
    };
    if !surroundings.is_root() {
        let own = user.uid() == surroundings.uid && gid.is_none_or(|gid| gid == surroundings.gid);
        return if own { Ok(Account::Own) } else { Err(AccountError::NotRoot) };
    }
    if user.uid() == surroundings.uid && gid.is_none() {
        return Ok(Account::Own);
    }
    match user {
        Identity::Known(user) => known(&user, gid),
        Identity::Number(uid) => {
            let gid = gid.or(fallback).ok_or(AccountError::NoPrimaryGroup(uid))?;
            let home = PathBuf::from("/");
            Ok(Account::Other { uid, gid, groups: vec![gid], name: uid.to_string(), home })
        }
    }
}

enum Identity {
    Known(User),
    /// A user id that no account has, as is usual in containers.
    Number(u32),
}

impl Identity {
    fn uid(&self) -> u32 {
        match self {
            Self::Known(user) => user.uid.as_raw(),
            Self::Number(uid) => *uid,
        }
    }
}

fn known(user: &User, gid: Option<u32>) -> Result<Account, AccountError> {
    let gid = gid.unwrap_or(user.gid.as_raw());
    let name = CString::new(user.name.as_str()).map_err(|_| AccountError::NoUser)?;
    let groups = getgrouplist(&name, Gid::from_raw(gid)).map_err(AccountError::Lookup)?;
    Ok(Account::Other {
        uid: user.uid.as_raw(),
        gid,
        groups: groups.into_iter().map(Gid::as_raw).collect(),
        name: user.name.clone(),
        home: user.dir.clone(),
    })
}

fn find_user(text: &str) -> Result<Identity, AccountError> {
    if let Ok(uid) = text.parse::<u32>() {
        return by_uid(uid);
    }
    let user = User::from_name(text).map_err(AccountError::Lookup)?;
    user.map(Identity::Known).ok_or(AccountError::NoUser)
}

fn by_uid(uid: u32) -> Result<Identity, AccountError> {
    let user = User::from_uid(Uid::from_raw(uid)).map_err(AccountError::Lookup)?;
    Ok(user.map_or(Identity::Number(uid), Identity::Known))
}

fn find_group(text: &str) -> Result<u32, AccountError> {
    if let Ok(gid) = text.parse::<u32>() {
        return Ok(gid);
    }
    let group = Group::from_name(text).map_err(AccountError::Lookup)?;
    group.map(|group| group.gid.as_raw()).ok_or(AccountError::NoGroup)
}

/// The owner of a directory with the directory's group, or `nobody` where root owns it.
fn owner_of(dir: &Path) -> Result<(Identity, Option<u32>), AccountError> {
    // Whoever checks the file has noted a directory that cannot be read.
    let (uid, gid) = std::fs::metadata(dir).map_or((0, 0), |dir| (dir.uid(), dir.gid()));
    if uid == 0 {
        return match find_user("nobody") {
            Ok(nobody) => Ok((nobody, None)),
            Err(AccountError::NoUser) => Err(AccountError::NoNobody),
            Err(error) => Err(error),
        };
    }
    by_uid(uid).map(|owner| (owner, Some(gid)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroUsize;

    use super::*;

    fn surroundings(uid: u32) -> Surroundings {
        Surroundings { variables: BTreeMap::new(), uid, gid: uid, cpus: NonZeroUsize::MIN, open_files: 1024 }
    }

    #[test]
    fn root_runs_a_worker_as_root_only_if_told_to() {
        let account = |user| resolve(user, None, Path::new("/"), &surroundings(0));
        assert_eq!(account(Some("root")), Ok(Account::Own));
        assert_eq!(account(Some("0")), Ok(Account::Own));
        let Ok(Account::Other { uid, name, groups, gid, .. }) = account(None) else {
            panic!("/ belongs to root")
        };
        assert!(uid != 0 && gid != 0 && groups.iter().all(|group| *group != 0));
        assert_eq!(name, "nobody");
    }

    #[test]
    fn a_number_without_an_account_needs_a_group() {
        let account = |group| resolve(Some("3999999"), group, Path::new("/"), &surroundings(0));
        assert_eq!(account(None), Err(AccountError::NoPrimaryGroup(3_999_999)));
        assert!(matches!(account(Some("77")), Ok(Account::Other { uid: 3_999_999, gid: 77, .. })));
    }

    #[test]
    fn others_than_root_can_only_be_themselves() {
        let account = |user, group| resolve(user, group, Path::new("/"), &surroundings(3_999_999));
        assert_eq!(account(None, None), Ok(Account::Own));
        assert_eq!(account(Some("3999999"), Some("3999999")), Ok(Account::Own));
        assert_eq!(account(Some("root"), None), Err(AccountError::NotRoot));
        assert_eq!(account(None, Some("0")), Err(AccountError::NotRoot));
        assert_eq!(account(Some("no-such-user"), None), Err(AccountError::NoUser));
        assert_eq!(account(None, Some("no-such-group")), Err(AccountError::NoGroup));
    }
}
