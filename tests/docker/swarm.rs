//! One node of a swarm: stacks and services with `driver_opts`.

use crate::common::engine::Engine;
use crate::common::host::Host;
use crate::common::wait;
use crate::{remove_when_free, start};

/// The kernel of a build machine may lack vxlan, so the stack uses the host's network.
const STACK: &str = r#"
version: "3.8"
services:
  writer:
    image: busybox
    command: sh -c "echo task >> /data/log; sleep 10000"
    networks: [host]
    volumes: ["log:/data"]
networks:
  host: {external: true, name: host}
volumes:
  log:
    driver: holdfast
    driver_opts: {size: 512M, fs: xfs}
"#;

/// The node tells the swarm about a plugin only after its first use.
fn join_swarm(engine: &Engine<'_>) {
    engine.docker(&["volume", "ls"]);
    engine.docker(&["swarm", "init", "--advertise-addr", "127.0.0.1"]);
}

fn running_task(engine: &Engine<'_>, service: &str) -> String {
    wait::until("the task runs", || {
        let filter = format!("label=com.docker.swarm.service.name={service}");
        let id = engine.docker(&["ps", "-q", "--filter", &filter]);
        (!id.is_empty() && !id.contains('\n')).then_some(id)
    })
}

#[test]
fn a_stack_makes_its_volume_with_driver_opts_and_a_new_task_finds_the_data() {
    let host = Host::new();
    let (daemon, mut engine) = start(&host);
    join_swarm(&engine);
    let file = host.dir().join("stack.yml");
    std::fs::write(&file, STACK).unwrap();
    let file = file.to_str().unwrap();
    engine.docker(&["stack", "deploy", "--resolve-image", "never", "-c", file, "app"]);
    let first = running_task(&engine, "app_writer");
    let volume = daemon.cli().inspect("app_log");
    assert_eq!(volume["filesystem"], "xfs", "{volume}");
    assert_eq!(volume["size"], 512 << 20, "{volume}");
    engine.docker(&["rm", "-f", &first]);
    let second = wait::until("another task", || {
        Some(running_task(&engine, "app_writer")).filter(|id| *id != first)
    });
    wait::until_true("both tasks have written", || {
        engine.docker(&["exec", &second, "cat", "/data/log"]) == "task\ntask"
    });
    engine.terminate();
    engine.start_again();
    let third = wait::until("a task after the restart", || {
        Some(running_task(&engine, "app_writer")).filter(|id| *id != second)
    });
    wait::until_true("the third task has written", || {
        engine.docker(&["exec", &third, "cat", "/data/log"]) == "task\ntask\ntask"
    });
    engine.docker(&["stack", "rm", "app"]);
    wait::until_true("the stack is gone and its volume is let go", || {
        host.mounts().is_empty() && host.loops().is_empty()
    });
    assert_eq!(daemon.plugin().list(), ["app_log"], "a stack's volumes stay");
    remove_when_free(&engine, "app_log");
}

#[test]
fn a_service_gives_each_task_a_volume_of_its_own_by_template() {
    let host = Host::new();
    let (daemon, engine) = start(&host);
    join_swarm(&engine);
    let mount = "type=volume,source={{.Service.Name}}-{{.Task.Slot}}-vol,target=/data,\
                 volume-driver=holdfast,volume-opt=size=64M";
    let create =
        ["service", "create", "-d", "--name", "web", "--replicas", "2", "--network", "host"];
    let rest = ["--no-resolve-image", "--mount", mount, "busybox", "sleep", "10000"];
    engine.docker(&[&create[..], &rest].concat());
    wait::until_true("both tasks hold a volume", || host.mounts().len() == 2);
    let mut names = daemon.plugin().list();
    names.sort();
    assert_eq!(names, ["web-1-vol", "web-2-vol"]);
    assert_eq!(daemon.cli().inspect("web-1-vol")["size"], 64 << 20);
    engine.docker(&["service", "rm", "web"]);
    wait::until_true("both are let go", || host.mounts().is_empty() && host.loops().is_empty());
}
