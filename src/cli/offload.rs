//! Flags for GPUs and RPC workers, with llama.cpp's names, values and defaults.

use std::ffi::OsString;

use clap::Args;

use super::MACHINE;
use crate::llama::offload::{Endpoint, FlashAttn, GpuLayers, SplitMode};

/// llama.cpp's flags of several letters after one dash, which clap would parse as several flags, and their long forms.
const SHORT: [(&str, &str); 6] = [
    ("-ngl", "--gpu-layers"),
    ("-dev", "--device"),
    ("-sm", "--split-mode"),
    ("-mg", "--main-gpu"),
    ("-ts", "--tensor-split"),
    ("-fa", "--flash-attn"),
];

/// Returns the arguments of this process in a form that clap can parse. llama.cpp's programs accept `--list-devices`
/// anywhere and then do nothing else, so it becomes the command `devices`, with the workers given as `--rpc`.
pub fn arguments() -> Vec<OsString> {
    spelled_out(std::env::args_os().collect())
}

fn spelled_out(mut args: Vec<OsString>) -> Vec<OsString> {
    if args.iter().skip(1).any(|arg| arg == "--list-devices") {
        let rpc = args.iter().position(|arg| arg == "--rpc").map(|at| args[at..].iter().take(2));
        let rpc: Vec<OsString> = rpc.into_iter().flatten().cloned().collect();
        args.truncate(1);
        args.push("devices".into());
        args.extend(rpc);
    }
    let long = |arg: &OsString| SHORT.iter().find(|(short, _)| arg == short).map(|(_, long)| long.into());
    args.iter().map(|arg| long(arg).unwrap_or_else(|| arg.clone())).collect()
}

/// Flags of every command that runs a model.
#[derive(Debug, Default, Args)]
pub struct OffloadArgs {
    /// Layers to run on devices: auto, all, or a number; also `-ngl` [default: auto, which means all if there is a
    /// device].
    #[arg(
        long, visible_alias = "n-gpu-layers", value_name = "auto|all|N", allow_hyphen_values = true,
        help_heading = MACHINE
    )]
    pub gpu_layers: Option<GpuLayers>,
    /// Devices to use, as named by `--list-devices`, or none; also `-dev` [default: all].
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", help_heading = MACHINE)]
    pub device: Vec<String>,
    /// How to split a model across devices; also `-sm` [default: layer].
    #[arg(long, value_enum, value_name = "MODE", help_heading = MACHINE)]
    pub split_mode: Option<SplitMode>,
    /// The device for `--split-mode none`, from 0; also `-mg`.
    #[arg(long, default_value_t = 0, value_name = "INDEX", help_heading = MACHINE)]
    pub main_gpu: u16,
    /// Proportions of the model per device, e.g. 3,1; also `-ts` [default: by free memory].
    #[arg(long, value_delimiter = ',', value_name = "N0,N1,…", help_heading = MACHINE)]
    pub tensor_split: Vec<f32>,
    /// Fused attention: on, off or auto; also `-fa` [default: off, so that results do not depend on the batch].
    #[arg(long, value_enum, value_name = "on|off|auto", help_heading = MACHINE)]
    pub flash_attn: Option<FlashAttn>,
    /// RPC workers (`rosi-gguf rpc-server` or llama.cpp's rpc-server) whose devices to use as well.
    #[arg(long, value_delimiter = ',', value_name = "HOST:PORT,…", help_heading = MACHINE)]
    pub rpc: Vec<Endpoint>,
}

/// Flags of `devices`.
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// RPC workers whose devices to list as well.
    #[arg(long, value_delimiter = ',', value_name = "HOST:PORT,…")]
    pub rpc: Vec<Endpoint>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `rpc-server`, with llama.cpp's names and defaults.
#[derive(Debug, Args)]
pub struct RpcServerArgs {
    /// Address to listen on. Anyone who can reach it can use it: there is no password and no encryption.
    #[arg(short = 'H', long, default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on.
    #[arg(short, long, default_value_t = 50052)]
    pub port: u16,
    /// CPU threads, if the CPU is shared [default: all cores].
    #[arg(short, long)]
    pub threads: Option<usize>,
    /// Devices to share; also `-dev` [default: all GPUs, or the CPU if there is none].
    #[arg(short, long, value_delimiter = ',', value_name = "NAME,…")]
    pub device: Vec<String>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn read(line: &str) -> Cli {
        let args = spelled_out(line.split(' ').map(OsString::from).collect());
        Cli::try_parse_from(args).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn devices_are_chosen_as_in_llama_cpp() {
        let line = "rosi-gguf ask m.gguf --prompt hi -ngl 9 -dev Vulkan0,RPC0 -sm row -mg 1 -ts 3,1 -fa on --rpc a:1,b:2";
        let Command::Ask(ask) = read(line).command else { panic!("{line}") };
        let offload = ask.run.offload;
        assert_eq!(offload.gpu_layers, Some(GpuLayers::Last(9)));
        assert_eq!(offload.device, ["Vulkan0", "RPC0"]);
        assert_eq!((offload.split_mode, offload.main_gpu), (Some(SplitMode::Row), 1));
        assert_eq!(offload.tensor_split, [3.0, 1.0]);
        assert_eq!(offload.flash_attn, Some(FlashAttn::On));
        assert_eq!(offload.rpc.iter().map(Endpoint::to_string).collect::<Vec<_>>(), ["a:1", "b:2"]);
    }

    #[test]
    fn list_devices_works_wherever_it_stands() {
        for line in ["rosi-gguf --list-devices", "rosi-gguf inject m.gguf --list-devices -v"] {
            assert!(matches!(read(line).command, Command::Devices(args) if args.rpc.is_empty()), "{line}");
        }
        let line = "rosi-gguf inject m.gguf --rpc a:1 --list-devices";
        assert!(matches!(read(line).command, Command::Devices(args) if args.rpc.len() == 1));
    }
}
