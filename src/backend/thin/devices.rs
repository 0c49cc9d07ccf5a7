//! The pool's own devices and their tables.

use std::path::PathBuf;

use super::ThinConfig;
use super::names::Names;
use super::status::PoolStatus;
use super::storage::Area;
use crate::error::{Error, Result};
use crate::linux::device_mapper::{DeviceMapper, Identity, Line, Mapped, SECTOR, Target};
use crate::model::Outcome;
use crate::units::ByteSize;

/// The devices of volumes that are attached, and of snapshots that are read.
pub(super) fn attached(mapper: &DeviceMapper, names: Names) -> Result<Vec<Mapped>> {
    let own = names.own();
    let mut devices = mapper.list(&names.prefix())?;
    devices.retain(|device| !own.contains(&device.identity));
    Ok(devices)
}

/// That volumes are attached or snapshots are read.
pub(super) fn in_use(attached: &[Mapped]) -> Error {
    let names: Vec<_> = attached.iter().map(|device| device.identity.name.as_str()).collect();
    Error::in_use(format!("devices of the pool are in use: {}", names.join(", "))).hint(
        "stop the containers that use volumes, which `holdfast volume ls` shows as mounted, and wait for what \
         reads snapshots, which `holdfast operation ls` shows",
    )
}

/// Takes the pool's own devices out of the kernel, each before those that it lies on; `Unchanged` while
/// a volume is attached or a snapshot is read.
pub(super) fn remove_unless_attached(
    mapper: &DeviceMapper,
    names: Names,
    devices: &[Identity],
) -> Result<Outcome> {
    if !attached(mapper, names)?.is_empty() {
        return Ok(Outcome::Unchanged);
    }
    for identity in devices {
        mapper.remove(&identity.uuid)?.ignore();
    }
    Ok(Outcome::Changed)
}

pub(super) fn metadata_path(mapper: &DeviceMapper, names: Names) -> Result<PathBuf> {
    let identity = names.metadata();
    let device = mapper.find(&identity.uuid)?;
    device.map(|device| device.path()).ok_or_else(|| gone(&identity))
}

pub(super) fn status(mapper: &DeviceMapper, names: Names) -> Result<PoolStatus> {
    match &mapper.status(&names.pool().uuid)?[..] {
        [Line { parameters, .. }] => PoolStatus::parse(parameters),
        _ => Err(Error::corrupt("the pool's device is not one pool")),
    }
}

/// Makes a part of the storage a device, or the device that it is already as large as the part.
pub(super) fn show(mapper: &DeviceMapper, identity: &Identity, area: Area) -> Result<Outcome> {
    let table = area.table();
    if let Some(device) = mapper.find(&identity.uuid)?
        && device.has_table
    {
        let now = mapper.table(&identity.uuid)?;
        match &now[..] {
            [line] if differs_in_length_only(&now, &table[0]) => {
                if line.length > table[0].length {
                    return Err(Error::corrupt(format!(
                        "what {} lies on has become smaller",
                        identity.name
                    ))
                    .hint("make the device as large again as it was"));
                }
                mapper.reload(&identity.uuid, &table)?;
                return Ok(Outcome::Changed);
            }
            _ => {}
        }
    }
    mapper.activate(identity, &table)?;
    Ok(Outcome::Unchanged)
}

/// Whether the kernel has this target at another length.
pub(super) fn differs_in_length_only(now: &[Line], target: &Target) -> bool {
    matches!(now, [line] if line.start == target.start
        && line.kind == target.kind
        && line.parameters.trim() == target.parameters
        && line.length != target.length)
}

/// Activates the pool over its two devices, or gives the active one the right table.
pub(super) fn show_pool(
    mapper: &DeviceMapper,
    names: Names,
    config: &ThinConfig,
    chunk_size: ByteSize,
    waits_for_room: bool,
) -> Result<Outcome> {
    let pool = names.pool();
    let part = |identity: Identity| mapper.find(&identity.uuid)?.ok_or_else(|| gone(&identity));
    let (metadata, data) = (part(names.metadata())?, part(names.data())?);
    let length: u64 = mapper.table(&names.data().uuid)?.iter().map(|line| line.length).sum();
    let chunk = chunk_size.bytes() / SECTOR;
    let length = length / chunk.max(1) * chunk;
    let low_water = config.low_water.of(length / chunk.max(1));
    let features = if waits_for_room { "0" } else { "1 error_if_no_space" };
    let devices = format!(
        "{}:{} {}:{} {chunk} ",
        metadata.number.0, metadata.number.1, data.number.0, data.number.1
    );
    let parameters = format!("{devices}{low_water} {features}");
    let table = [Target { start: 0, length, kind: "thin-pool", parameters }];
    let Some(active) = mapper.find(&pool.uuid)?.filter(|device| device.has_table) else {
        mapper.activate(&pool, &table)?;
        return Ok(Outcome::Changed);
    };
    let now = mapper.table(&pool.uuid)?;
    let ours = matches!(&now[..], [line] if line.kind == "thin-pool"
        && line.parameters.starts_with(&devices)
        && line.length <= length);
    if !ours {
        return Err(Error::corrupt(format!(
            "the device {} is not the pool of these devices",
            active.identity.name
        ))
        .hint(format!("see: dmsetup table {}", active.identity.name)));
    }
    if mapper.has_table(&pool.uuid, &table)? {
        return Ok(Outcome::Unchanged);
    }
    mapper.reload(&pool.uuid, &table)?;
    Ok(Outcome::Changed)
}

pub(super) fn thin_table(pool: (u32, u32), id: u32, size: ByteSize) -> Target {
    Target {
        start: 0,
        length: size.bytes() / SECTOR,
        kind: "thin",
        parameters: format!("{}:{} {id}", pool.0, pool.1),
    }
}

pub(super) fn gone(identity: &Identity) -> Error {
    Error::not_found(format!("the device {} has gone", identity.name))
        .hint("start the daemon again")
}
