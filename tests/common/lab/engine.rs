//! A Docker Engine in a host, driven from outside. A test that runs inside has `common::engine`.

use super::host::Host;
use super::{Command, SHARE};
use crate::common::engine::{dockerd_args, write_images};

/// An engine with the images `busybox` and `seeded`.
#[derive(Debug)]
pub(crate) struct Engine<'h> {
    host: &'h Host<'h>,
    socket: String,
}

/// Starts dockerd and waits until it answers. It makes its socket first and answers on it when it can.
/// What a former run left is usually in /run, which no reboot survives.
const START: &str = r#"
    dir=$1 socket=$2
    shift 2
    mkdir -p "$dir"
    rm -rf "$socket" "$dir/pid" "$dir/exec"
    dockerd "$@" >"$dir/log" 2>&1 &
    until [[ -S $socket ]]; do
        kill -0 $! || { cat "$dir/log"; exit 1; }
        sleep 0.1
    done
    docker -H "unix://$socket" images --quiet"#;

impl<'h> Engine<'h> {
    /// Starts an engine whose data is in `dir` of a host that was booted for `containers`. A directory
    /// that has been an engine's before has its images and containers.
    #[track_caller]
    pub(crate) fn start(host: &'h Host<'h>, dir: &str) -> Self {
        let engine = Self { host, socket: format!("{dir}/docker.sock") };
        let images = host
            .command("bash")
            .args(&["-euo", "pipefail", "-c", START, "start", dir, &engine.socket])
            .args(&dockerd_args(dir.as_ref()))
            .checked();
        if images.is_empty() {
            engine.import_images();
        }
        engine
    }

    #[track_caller]
    fn import_images(&self) {
        let dir = tempfile::tempdir_in(self.host.lab().dir()).expect("temp dir");
        let inside = dir.path().file_name().and_then(|name| name.to_str()).expect("UTF-8");
        for (name, archive) in write_images(dir.path()) {
            let archive = archive.file_name().and_then(|name| name.to_str()).expect("UTF-8");
            let archive = format!("{SHARE}/{inside}/{archive}");
            self.docker(&["import", "--change", "CMD [\"sh\"]", &archive, name]);
        }
    }

    /// The docker client, not started yet.
    pub(crate) fn client(&self, args: &[&str]) -> Command<'h> {
        let host = format!("unix://{}", self.socket);
        self.host.command("docker").env("DOCKER_HOST", &host).args(args)
    }

    /// Runs `docker ARGS`, which must succeed, and gives what it printed, trimmed.
    #[track_caller]
    pub(crate) fn docker(&self, args: &[&str]) -> String {
        self.client(args).checked().trim_end().to_owned()
    }
}
