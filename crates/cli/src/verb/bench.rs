//! `ringfence bench`: measures ringfence and others on this machine, compares and draws what was measured.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};
use ringfence_bench::compare::{self, Options};
use ringfence_bench::model::Report;
use ringfence_bench::suite::{self, Ask, Part};
use ringfence_bench::{join, machine, page, text};

use crate::exit::ExitCode;
use crate::help;
use crate::output;

/// A regression was found.
const WORSE: u8 = 1;
/// Where results go.
const OUTPUT: &str = "benchmarks";

fn file(name: &'static str, value: &'static str, about: &'static str) -> Arg {
    Arg::new(name).value_name(value).value_parser(clap::value_parser!(PathBuf)).help(about)
}

fn measuring(name: &'static str, about: &'static str) -> Command {
    let number = clap::value_parser!(u32).range(1..=100_000);
    Command::new(name)
        .about(about)
        .arg(file("output", "DIR", "Where results go (default: ./benchmarks)").short('o').long("output"))
        .arg(file("binary", "PATH", "The ringfence to measure (default: this one)").short('b').long("binary"))
        .arg(
            Arg::new("runs")
                .short('n')
                .long("runs")
                .value_name("N")
                .value_parser(number)
                .help("Samples of each case (default: 30; quick: 5)"),
        )
        .arg(
            Arg::new("peers")
                .long("peers")
                .value_name("NAME,...")
                .help("Only these other sandboxes, or none (default: those that are there)"),
        )
        .arg(
            Arg::new("cpus")
                .long("cpus")
                .value_name("N,...")
                .value_delimiter(',')
                .value_parser(clap::value_parser!(usize))
                .help("Keep what is measured to these processors (default: the last two of four or more)"),
        )
        .arg(
            Arg::new("hyperfine")
                .long("hyperfine")
                .action(ArgAction::SetTrue)
                .help("Measure the cold starts by hyperfine too, into DIR/hyperfine"),
        )
        .arg(Arg::new("commit").long("commit").value_name("ID").help("What was built, for the record"))
        .arg(
            Arg::new("quick")
                .short('q')
                .long("quick")
                .action(ArgAction::SetTrue)
                .help("Few samples of little work: to see that it works"),
        )
        .arg(
            Arg::new("allow-debug")
                .long("allow-debug")
                .action(ArgAction::SetTrue)
                .help("Measure a debug build, to try the suite; the result says so"),
        )
}

pub fn command() -> Command {
    let threshold = Arg::new("threshold")
        .long("threshold")
        .value_name("PERCENT")
        .value_parser(clap::value_parser!(f64))
        .help("The least change that counts (default: 2)");
    let alpha = Arg::new("alpha")
        .long("alpha")
        .value_name("P")
        .value_parser(clap::value_parser!(f64))
        .help("Chance of one false alarm among all cases (default: 0.05)");
    let switch = |name: &'static str, about: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(about)
    };
    Command::new("bench")
        .about("Measure this machine's sandboxes side by side; compare and draw what was measured")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(measuring("quick", "A little of everything, in a minute"))
        .subcommand(measuring("all", "Everything but the network"))
        .subcommand(measuring("cold", "Whole commands, each in a sandbox of its own"))
        .subcommand(measuring("warm", "Commands in a sandbox that is there"))
        .subcommand(measuring("files", "Reading, writing and looking at files inside"))
        .subcommand(measuring("network", "A host that is allowed, and one that is not"))
        .subcommand(measuring("density", "Starts at a time, and what idle sandboxes take"))
        .subcommand(
            Command::new("compare")
                .about("Say what changed between two results, and how sure that is")
                .arg(file("old", "A.json", "Before").required(true))
                .arg(file("new", "B.json", "After").required(true))
                .arg(threshold)
                .arg(alpha)
                .arg(switch("factor", "Compare overhead factors on the same machine too"))
                .arg(switch("json", "Print JSON"))
                .after_help("Changed is what the Mann-Whitney test, adjusted for the number of cases, and the interval of the\nchange of the median agree on, by time and by overhead factor. Between machines only the overhead\nfactor is compared.\n\nExit codes:\n  0 nothing of ringfence's became worse; 1 something did; 125 the two cannot be compared"),
        )
        .subcommand(
            Command::new("report")
                .about("Draw every result of a directory on one page: DIR/report.html, and report.md")
                .arg(file("dir", "DIR", "Where the results are (default: ./benchmarks)")),
        )
        .subcommand(
            Command::new("merge")
                .about("Make one result of all of a directory: DIR/merged.json")
                .arg(file("dir", "DIR", "Where the results are (default: ./benchmarks)"))
                .arg(file("tables", "FILE", "Figures of bench/run to take in too").long("tables")),
        )
        .subcommand(
            Command::new("trace")
                .about("Draw what `run --trace-startup` wrote, on one page")
                .arg(file("file", "FILE", "The trace").required(true))
                .arg(file("to", "PAGE.html", "Where the page goes").required(true)),
        )
        .subcommand(Command::new("schema").about("Print the JSON Schema of results"))
        .subcommand(Command::new(machine::ABOUT).hide(true))
        .subcommand(
            Command::new(suite::files::WORKER).hide(true).arg(Arg::new("work").required(true)),
        )
        .after_help(
            "Cases of a group are measured in turn, after warm-ups, in an order drawn anew for each round. Results are\nDIR/NAME.json (`bench schema`) and tables on standard output. Debug builds are refused.\n\nExamples:\n  ringfence bench quick\n  ringfence bench cold -n 100 --peers bubblewrap,docker\n  ringfence bench compare old/cold.json new/cold.json\n  ringfence bench report benchmarks\n\nExit codes:\n  0 measured; 125 not. `compare` has its own",
        )
}

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let Some((name, m)) = matches.subcommand_matches("bench").and_then(|m| m.subcommand()) else {
        return output::fail("bench: no verb");
    };
    let done = match name {
        "quick" => measured(name, m, &Part::ALL),
        "all" => measured(name, m, &[Part::Cold, Part::Warm, Part::Files, Part::Density]),
        "compare" => compared(m),
        "report" => reported(m),
        "merge" => merged(m),
        "trace" => traced(m),
        "schema" => Ok(output::print(&ringfence_bench::model::schema())),
        machine::ABOUT => Ok(output::print(&format!("{}\n", machine::about()))),
        suite::files::WORKER => worked(m),
        name => match Part::ALL.iter().find(|part| part.name() == name) {
            Some(part) => measured(name, m, &[*part]),
            None => Err(format!("bench: no verb {name}")),
        },
    };
    done.unwrap_or_else(output::fail)
}

fn path<'a>(m: &'a ArgMatches, name: &str) -> Option<&'a Path> {
    m.get_one::<PathBuf>(name).map(PathBuf::as_path)
}

fn measured(name: &str, m: &ArgMatches, parts: &[Part]) -> Result<ExitCode, String> {
    let to = path(m, "output").unwrap_or(Path::new(OUTPUT));
    std::fs::create_dir_all(to).map_err(|e| format!("{}: {}", to.display(), e.kind()))?;
    let binary = match path(m, "binary") {
        Some(path) => path.to_owned(),
        None => std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?,
    };
    let peers = m.get_one::<String>("peers").map(|list| {
        let named = list.split(',').map(str::trim).filter(|n| !n.is_empty() && *n != "none");
        named.map(str::to_owned).collect::<Vec<_>>()
    });
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let ask = Ask {
        binary,
        commit: m.get_one::<String>("commit").cloned(),
        rounds: m.get_one::<u32>("runs").map(|n| *n as usize),
        quick: m.get_flag("quick") || name == "quick",
        peers,
        cpus: m.get_many::<usize>("cpus").map(|all| all.copied().collect()),
        hyperfine: m.get_flag("hyperfine").then(|| to.join("hyperfine")),
        debug: m.get_flag("allow-debug"),
        progress: true,
        command: format!("ringfence {}", ringfence_bench::runner::shell_words(&words)),
    };
    let report = suite::measure(&ask, name, parts)?;
    let file = to.join(format!("{name}.json"));
    report.write(&file)?;
    output::say(format_args!("results are in {}", file.display()));
    Ok(output::print(&text::document(&report)))
}

fn compared(m: &ArgMatches) -> Result<ExitCode, String> {
    let (Some(old), Some(new)) = (path(m, "old"), path(m, "new")) else {
        return Err("bench compare: two results".into());
    };
    let mut options = Options { by_factor: m.get_flag("factor"), ..Options::default() };
    if let Some(percent) = m.get_one::<f64>("threshold") {
        options.threshold = percent / 100.0;
    }
    if let Some(alpha) = m.get_one::<f64>("alpha") {
        options.alpha = *alpha;
    }
    let found = compare::compare(&Report::read(old)?, &Report::read(new)?, &options);
    if found.rows.is_empty() {
        return Err(format!("{} and {} have nothing in common", old.display(), new.display()));
    }
    let printed = if m.get_flag("json") {
        output::print_json(&found)
    } else {
        output::print(&found.markdown())
    };
    Ok(if found.regressed() { ExitCode::from(WORSE) } else { printed })
}

fn reported(m: &ArgMatches) -> Result<ExitCode, String> {
    let dir = path(m, "dir").unwrap_or(Path::new(OUTPUT));
    let reports = page::gather(dir)?;
    let write = |name: &str, text: String| {
        let file = dir.join(name);
        std::fs::write(&file, text).map_err(|e| format!("{}: {}", file.display(), e.kind()))
    };
    write("report.html", page::html(&reports))?;
    write("report.md", page::markdown(&reports))?;
    Ok(output::print(&format!("{}\n", dir.join("report.html").display())))
}

fn merged(m: &ArgMatches) -> Result<ExitCode, String> {
    let dir = path(m, "dir").unwrap_or(Path::new(OUTPUT));
    let reports = page::gather(dir)?;
    let mut all = join::merge(reports)?;
    if let Some(file) = path(m, "tables") {
        let problem = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
        let text = std::fs::read_to_string(file).map_err(|e| problem(&e))?;
        all.groups.extend(join::tables(&text, &all.machine.user).map_err(|e| problem(&e))?);
    }
    all.write(&dir.join(page::MERGED))?;
    Ok(output::print(&text::document(&all)))
}

fn traced(m: &ArgMatches) -> Result<ExitCode, String> {
    let (Some(from), Some(to)) = (path(m, "file"), path(m, "to")) else {
        return Err("bench trace: a trace and a page".into());
    };
    let timeline = ringfence_bench::trace::read(from, "")?;
    std::fs::write(to, page::timeline(&timeline))
        .map_err(|e| format!("{}: {}", to.display(), e.kind()))?;
    Ok(ExitCode::SUCCESS)
}

fn worked(m: &ArgMatches) -> Result<ExitCode, String> {
    let work = m.get_one::<String>("work").map(String::as_str).unwrap_or_default();
    Ok(output::print(&format!("{:.1}\n", suite::files::worker(work)?)))
}
