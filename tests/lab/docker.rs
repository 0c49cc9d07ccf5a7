//! A Docker Engine in a host.

use crate::common::daemon::Launch;
use crate::common::engine::Engine as InnerEngine;
use crate::common::host::Host;
use crate::common::lab::{Engine, Lab, in_lab};

#[test]
fn an_engine_keeps_its_containers_on_a_disk() {
    let lab = Lab::new();
    let disk = lab.disk(512);
    let host = lab.host("a").memory(1024).containers().disk(&disk).boot();
    let mount = format!("mkdir /disk; mount {} /disk", host.device(&disk).display());
    host.sh(&format!("mkfs.ext4 -q {}", host.device(&disk).display()));
    host.sh(&mount);
    let engine = Engine::start(&host, "/disk/engine");
    let args =
        ["run", "--name", "one", "--network=none", "busybox", "sh", "-c", "echo hello | tee /file"];
    assert_eq!(engine.docker(&args), "hello");
    host.power_off();
    host.boot_again();
    host.sh(&mount);
    let engine = Engine::start(&host, "/disk/engine");
    assert_eq!(engine.docker(&["start", "--attach", "one"]), "hello");
}

in_lab! {
    on |host| host.memory(2048).modules(&["loop"]).containers();
    fn a_volume_of_holdfast_works_in_a_container() {
        let host = Host::new();
        let _daemon = Launch::for_engine().start(&host);
        let engine = InnerEngine::start(&host);
        engine.in_volume("data", "echo kept > /data/file");
        assert_eq!(engine.in_volume("data", "cat /data/file"), "kept");
    }
}
