use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::content::{clear, pack, unpack};
use super::{SimMount, SimProgram, SimWorld, State};
use crate::error::{Error, Result};
use crate::id::BootId;
use crate::linux::{FilesystemSpec, FilesystemUsage, Host, MountRequest, Mounted};
use crate::model::Outcome;
use crate::options::{FilesystemKind, Ownership};

/// What a daemon sees of the simulated kernel. Owners of files are not kept: that needs root.
#[derive(Debug)]
pub struct SimHost {
    world: SimWorld,
    boot: BootId,
}

impl SimHost {
    /// The host as it is in this run of the world's kernel.
    pub fn new(world: &SimWorld) -> Self {
        let boot = world.lock().boot_id();
        Self { world: world.clone(), boot }
    }
}

fn check_options(request: &MountRequest) -> Result<()> {
    let wrong = |option: &&String| option.starts_with("bogus") || option.starts_with("device=");
    match request.options.iter().find(wrong) {
        None => Ok(()),
        Some(option) => Err(Error::invalid(format!("there is no mount option {option:?}"))),
    }
}

impl State {
    fn mount_at(&mut self, target: &Path) -> Option<&mut SimMount> {
        self.mounts.iter_mut().rfind(|mount| mount.target == target)
    }

    fn need_mount(&mut self, target: &Path) -> Result<&mut SimMount> {
        self.mount_at(target)
            .ok_or_else(|| Error::not_found(format!("nothing is mounted at {}", target.display())))
    }

    fn flush(&mut self, target: &Path) -> Result<()> {
        let mount = self.need_mount(target)?;
        if mount.read_only || mount.frozen {
            return Ok(());
        }
        let device = mount.device.clone();
        let tree = pack(target)?;
        self.device_blocks(&device)?.save_tree(&tree)
    }

    fn do_mount(&mut self, request: &MountRequest) -> Result<Outcome> {
        let device = Path::new(&request.source);
        let target = &request.target;
        if let Some(mounted) = self.mount_at(target) {
            if mounted.device == device {
                return Ok(Outcome::Unchanged);
            }
            return Err(Error::in_use(format!("{} is a mount already", target.display())));
        }
        check_options(request)?;
        let blocks = self.device_blocks(device)?;
        let superblock = blocks.superblock()?;
        if superblock.kind.as_str() != request.filesystem {
            return Err(Error::corrupt(format!("the device holds {}", superblock.kind)));
        }
        if superblock.size > blocks.size {
            return Err(Error::corrupt("the device is smaller than its filesystem"));
        }
        let tree = blocks.tree()?;
        std::fs::create_dir_all(target)
            .map_err(|error| Error::io(format!("cannot make {}", target.display()), error))?;
        if target.is_symlink() {
            return Err(Error::invalid(format!("{} is a link", target.display())));
        }
        // What a daemon before this one left there when it was killed in the middle of this.
        clear(target)?;
        unpack(&tree, target)?;
        self.mounts.push(SimMount {
            target: target.clone(),
            device: device.to_owned(),
            read_only: request.read_only,
            frozen: false,
        });
        Ok(Outcome::Changed)
    }

    fn do_unmount(&mut self, target: &Path) -> Result<Outcome> {
        let Some(position) = self.mounts.iter().rposition(|mount| mount.target == target) else {
            let _ = std::fs::remove_dir(target);
            return Ok(Outcome::Unchanged);
        };
        if self.busy.contains(target) || self.users.get(target).is_some_and(|users| *users > 0) {
            return Err(Error::in_use(format!("files below {} are open", target.display())));
        }
        let mount = self.mounts.remove(position);
        // Thawed first, so what was written meanwhile is on the device.
        self.write_back(&mount)?;
        clear(target)?;
        let _ = std::fs::remove_dir(target);
        self.let_go();
        Ok(Outcome::Changed)
    }
}

#[async_trait]
impl Host for SimHost {
    fn boot_id(&self) -> BootId {
        self.boot
    }

    async fn is_blank(&self, device: &Path) -> Result<bool> {
        Ok(self.world.lock().device_blocks(device)?.is_blank())
    }

    async fn make_filesystem(&self, device: &Path, spec: &FilesystemSpec) -> Result<()> {
        if let Some(bad) = spec.options.iter().find(|word| word.contains("bogus")) {
            return Err(Error::invalid(format!("mkfs does not know {bad:?}")));
        }
        let mut state = self.world.lock();
        let blocks = state.device_blocks(device)?;
        if !blocks.is_blank() {
            return Err(Error::conflict("the device holds something"));
        }
        blocks.format(spec.kind, spec.uuid)
    }

    async fn renew_identity(
        &self,
        device: &Path,
        kind: FilesystemKind,
        uuid: Uuid,
        _scratch: &Path,
    ) -> Result<()> {
        let mut state = self.world.lock();
        if state.is_mounted(device) {
            return Err(Error::in_use(format!("{} is mounted", device.display())));
        }
        let blocks = state.device_blocks(device)?;
        let mut superblock = blocks.superblock()?;
        if superblock.kind != kind {
            return Err(Error::corrupt(format!("the device holds {}", superblock.kind)));
        }
        superblock.uuid = uuid;
        blocks.set_superblock(&superblock)
    }

    async fn mount(&self, request: &MountRequest) -> Result<Outcome> {
        self.world.lock().do_mount(request)
    }

    async fn try_mount(&self, request: &MountRequest) -> Result<()> {
        check_options(request)?;
        self.world.lock().device_blocks(Path::new(&request.source))?.superblock().map(drop)
    }

    async fn unmount(&self, target: &Path) -> Result<Outcome> {
        self.world.lock().do_unmount(target)
    }

    async fn mounts_below(&self, directory: &Path) -> Result<Vec<Mounted>> {
        let mut state = self.world.lock();
        let below = |mount: &&SimMount| mount.target.starts_with(directory);
        let mounts: Vec<_> = state
            .mounts
            .iter()
            .filter(below)
            .map(|m| (m.target.clone(), m.device.clone(), m.read_only))
            .collect();
        mounts
            .into_iter()
            .map(|(target, device, read_only)| {
                let number = state.devices.get(&device).map_or(0, |device| device.number);
                let kind = state.device_blocks(&device)?.superblock()?.kind;
                Ok(Mounted {
                    target,
                    source: device.display().to_string(),
                    filesystem: kind.as_str().to_owned(),
                    root: "/".into(),
                    device: (240, number),
                    read_only,
                })
            })
            .collect()
    }

    async fn bind_mounts_of(&self, target: &Path) -> Result<usize> {
        let mut state = self.world.lock();
        state.need_mount(target)?;
        Ok(state.users.get(target).copied().unwrap_or(0))
    }

    async fn flush(&self, target: &Path) -> Result<()> {
        self.world.lock().flush(target)
    }

    async fn freeze(&self, target: &Path) -> Result<Outcome> {
        let takes = {
            let mut state = self.world.lock();
            if state.need_mount(target)?.frozen {
                return Ok(Outcome::Unchanged);
            }
            state.freezes_take
        };
        if let Some(takes) = takes {
            tokio::time::sleep(takes).await;
        }
        let mut state = self.world.lock();
        state.flush(target)?;
        state.need_mount(target)?.frozen = true;
        Ok(Outcome::Changed)
    }

    async fn thaw(&self, target: &Path) -> Result<Outcome> {
        let mut state = self.world.lock();
        if let Some(left) = state.thaws_fail.checked_sub(1) {
            state.thaws_fail = left;
            return Err(Error::unavailable("the simulated kernel does not thaw now"));
        }
        let mount = state.need_mount(target)?;
        Ok(match std::mem::take(&mut mount.frozen) {
            true => Outcome::Changed,
            false => Outcome::Unchanged,
        })
    }

    async fn grow_filesystem(
        &self,
        device: &Path,
        _kind: FilesystemKind,
        target: &Path,
    ) -> Result<()> {
        let mut state = self.world.lock();
        state.need_mount(target)?;
        if state.stays_small {
            return Err(Error::internal("the simulated filesystem does not grow"));
        }
        let blocks = state.device_blocks(device)?;
        let mut superblock = blocks.superblock()?;
        superblock.size = blocks.size;
        blocks.set_superblock(&superblock)
    }

    async fn prepare_directory(&self, directory: &Path, ownership: Ownership) -> Result<()> {
        let failed = |error| Error::io(format!("cannot prepare {}", directory.display()), error);
        let made = match std::fs::create_dir(directory) {
            Ok(()) => true,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed(error)),
        };
        if !directory.symlink_metadata().map_err(failed)?.is_dir() {
            return Err(Error::corrupt(format!("{} is not a directory", directory.display())));
        }
        if let Some(mode) = ownership.mode.or(made.then_some(0o755)) {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(directory, permissions).map_err(failed)?;
        }
        Ok(())
    }

    async fn run_command(
        &self,
        command: &[String],
        variables: &[(&'static str, String)],
        limit: Duration,
    ) -> Result<()> {
        let name = command.first().map_or("", String::as_str);
        {
            let mut state = self.world.lock();
            let frozen = state.mounts.iter().any(|mount| mount.frozen);
            let of = |(name, value): &(&str, String)| ((*name).to_owned(), value.clone());
            let variables = variables.iter().map(of).collect();
            let program = SimProgram { command: command.to_vec(), variables, frozen };
            state.programs.push(program);
        }
        match name {
            "fails" => Err(Error::internal("fails failed: as it was told to")),
            "hangs" => {
                tokio::time::sleep(limit).await;
                Err(Error::unavailable("hangs was still running and was killed"))
            }
            _ => Ok(()),
        }
    }

    async fn filesystem_usage(&self, target: &Path) -> Result<FilesystemUsage> {
        let mut state = self.world.lock();
        let device = state.need_mount(target)?.device.clone();
        let blocks = state.device_blocks(&device)?;
        let (total, used) = (blocks.superblock()?.size, blocks.allocated());
        Ok(FilesystemUsage { total, used, available: total.saturating_sub(used) })
    }
}
