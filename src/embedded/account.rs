//! The account that the server runs as. PostgreSQL refuses to run as root, so root selects another one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A user of the system.
#[derive(Debug, Clone, Copy)]
pub(super) struct OsAccount {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Returns the account to switch to; none if this process is not root and can run the server itself.
pub(super) fn server_account() -> Option<OsAccount> {
    // /proc/self belongs to the effective user; without /proc, a new file does
    let uid = fs::metadata("/proc/self").map(|meta| meta.uid()).ok().or_else(|| {
        let probe = tempfile::tempfile().ok()?;
        probe.metadata().ok().map(|meta| meta.uid())
    });
    if uid != Some(0) {
        return None;
    }
    let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
    ["postgres", "nobody"].into_iter().find_map(|name| account_of(&accounts, name))
}

fn account_of(accounts: &str, name: &str) -> Option<OsAccount> {
    let line = accounts.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some(OsAccount { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

impl OsAccount {
    /// Makes the account the owner of a path.
    pub(super) fn own(self, path: &Path) -> std::io::Result<()> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
    }

    /// Returns whether the account may enter the folder and all its ancestors.
    pub(super) fn can_reach(self, folder: &Path) -> bool {
        folder.ancestors().all(|ancestor| {
            fs::metadata(ancestor).is_ok_and(|meta| {
                let execute = if meta.uid() == self.uid {
                    0o100
                } else if meta.gid() == self.gid {
                    0o010
                } else {
                    0o001
                };
                meta.mode() & execute != 0
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_by_name() {
        let accounts = "root:x:0:0:root:/root:/bin/sh\npostgres:x:104:112::/var/lib/postgresql:/bin/bash\n";
        let found = account_of(accounts, "postgres").unwrap();
        assert_eq!((found.uid, found.gid), (104, 112));
        assert!(account_of(accounts, "post").is_none());
    }
}
