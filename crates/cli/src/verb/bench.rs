//! `ringfence bench`: measures ringfence and others on this machine, compares and draws what was measured.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use ringfence_bench::compare::{self, Options};
use ringfence_bench::model::{self, Report};
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
            Arg::new("adapter")
                .long("adapter")
                .value_name("FILE.toml")
                .action(ArgAction::Append)
                .value_parser(clap::value_parser!(PathBuf))
                .help("One more sandbox, described as those of bench/peers are"),
        )
        .arg(
            Arg::new("budget")
                .long("budget")
                .value_name("SECONDS")
                .value_parser(clap::value_parser!(u32).range(1..=86_400))
                .help("What a case may take before it gets fewer samples, 3 at least (default: 20)"),
        )
        .arg(
            Arg::new("hyperfine")
                .long("hyperfine")
                .action(ArgAction::SetTrue)
                .help("Measure some of the cold starts by hyperfine too, into DIR/hyperfine"),
        )
        // A script that asks for a part of its own work is what was typed.
        .arg(Arg::new("as").long("as").value_name("COMMAND").hide(true))
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

/// Parts that are commands, each by itself: they can be chosen, and run by two binaries in turn.
fn choosing(command: Command) -> Command {
    command
        .arg(
            Arg::new("only")
                .long("only")
                .value_name("WORK,...")
                .value_delimiter(',')
                .help("Only this work, as groups are called: true, git, read-small, ..."),
        )
        .arg(
            file(
                "against",
                "OLD",
                "Another ringfence, measured in the same rounds; its result goes to DIR/against",
            )
            .long("against"),
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
        .subcommand(choosing(measuring("cold", "Whole commands, each in a sandbox of its own")))
        .subcommand(measuring("warm", "Commands in a sandbox that is there"))
        .subcommand(measuring("server", "The daemon's answers: lives, commands, files, sessions, many at once"))
        .subcommand(choosing(measuring("files", "Reading, writing and looking at files inside")))
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
                .after_help("Changed is what the Mann-Whitney test, adjusted for the number of cases, and the interval of the\nchange of the median agree on, by time and by overhead factor. Between machines only the overhead\nfactor is compared. Two results of the same rounds (`--against`) are compared round by round.\n\nExit codes:\n  0 nothing of ringfence's became worse; 1 something did; 125 the two cannot be compared"),
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
                .arg(file("tables", "FILE", "Figures of bench/run to take in too").long("tables"))
                .arg(switch("headline", "Print only what stands before the single groups")),
        )
        .subcommand(
            Command::new("trace")
                .about("Draw what `run --trace-startup` wrote, on one page")
                .arg(file("file", "FILE", "The trace").required(true))
                .arg(file("to", "PAGE.html", "Where the page goes").required(true)),
        )
        .subcommand(
            Command::new("schema")
                .about("Print the JSON Schema of results")
                .arg(switch("details", "Of the details that stress tests write beside theirs")),
        )
        .subcommand(Command::new(machine::ABOUT).hide(true))
        .subcommand(
            Command::new(suite::files::WORKER).hide(true).arg(Arg::new("work").required(true)),
        )
        .after_help(
            "Cases of a group are measured in turn, after warm-ups, in an order drawn anew for each round.\nResults are DIR/NAME.json (`bench schema`) and tables on standard output. What fails is in them with\nthe reason. Debug builds are refused.\n\nExamples:\n  ringfence bench quick\n  ringfence bench cold -n 100 --peers bubblewrap,docker\n  ringfence bench compare old/cold.json new/cold.json\n  ringfence bench cold -n 200 --only true --against ./ringfence-before\n  ringfence bench report benchmarks\n\nExit codes:\n  0 measured; 125 not. `compare` has its own",
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
        "all" => {
            measured(name, m, &[Part::Cold, Part::Warm, Part::Server, Part::Files, Part::Density])
        }
        "compare" => compared(m),
        "report" => reported(m),
        "merge" => merged(m),
        "trace" => traced(m),
        "schema" if m.get_flag("details") => Ok(output::print(&model::details_schema())),
        "schema" => Ok(output::print(&model::schema())),
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
    let words: Vec<OsString> = std::env::args_os().skip(1).map(nameless).collect();
    let typed = format!("ringfence {}", ringfence_bench::runner::shell_words(&words));
    // Not every part can be chosen.
    let against = m.try_get_one::<PathBuf>("against").ok().flatten().cloned();
    let only = m.try_get_many::<String>("only").ok().flatten().map(|all| all.cloned().collect());
    let ask = Ask {
        binary,
        against,
        only,
        budget: m.get_one::<u32>("budget").map(|s| Duration::from_secs(u64::from(*s))),
        adapters: m.get_many::<PathBuf>("adapter").into_iter().flatten().cloned().collect(),
        commit: m.get_one::<String>("commit").cloned(),
        rounds: m.get_one::<u32>("runs").map(|n| *n as usize),
        quick: m.get_flag("quick") || name == "quick",
        peers,
        cpus: m.get_many::<usize>("cpus").map(|all| all.copied().collect()),
        hyperfine: m.get_flag("hyperfine").then(|| to.join("hyperfine")),
        debug: m.get_flag("allow-debug"),
        progress: true,
        command: m.get_one::<String>("as").cloned().unwrap_or(typed),
    };
    let (report, before) = suite::measure(&ask, name, parts)?;
    let file = to.join(format!("{name}.json"));
    report.write(&file)?;
    output::say(format_args!("results are in {}", file.display()));
    if let Some(before) = before {
        // Below, so that neither `report` nor `merge` takes two binaries for one.
        let to = to.join("against");
        std::fs::create_dir_all(&to).map_err(|e| format!("{}: {}", to.display(), e.kind()))?;
        before.write(&to.join(format!("{name}.json")))?;
        let found = compare::compare(&before, &report, &Options::default());
        return Ok(output::print(&format!("{}\n{}", text::headline(&report), found.markdown())));
    }
    Ok(output::print(&text::document(&report)))
}

/// A word of a command line without the directory that says where somebody works.
fn nameless(word: OsString) -> OsString {
    let bytes = word.as_encoded_bytes();
    let value = match bytes.iter().position(|b| *b == b'=') {
        Some(at) if bytes.starts_with(b"--") => at + 1,
        _ => 0,
    };
    let path = Path::new(OsStr::from_bytes(&bytes[value..]));
    let Some(name) = path.file_name().filter(|_| path.is_absolute()) else { return word };
    let mut shown = OsStr::from_bytes(&bytes[..value]).to_owned();
    shown.push(name);
    shown
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
    let text = if m.get_flag("headline") { text::headline(&all) } else { text::document(&all) };
    Ok(output::print(&text))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_typed_is_recorded_without_directories() {
        for (word, recorded) in [
            ("/home/somebody/work/ringfence", "ringfence"),
            ("--output=/home/somebody/out", "--output=out"),
            ("benchmarks/old", "benchmarks/old"),
            ("a=/b", "a=/b"),
            ("--quick", "--quick"),
            ("/", "/"),
        ] {
            assert_eq!(nameless(word.into()), OsString::from(recorded));
        }
    }
}
