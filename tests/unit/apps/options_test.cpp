// Options from flags, MPINFER_* variables and a TOML file: precedence, origins, refusals with the
// nearest name, and the way from rank 0 to the others.
#include "apps/options.h"

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "apps/model_directory.h"
#include "apps/option_table.h"
#include "lib/core/error.h"
#include "tests/support/catch.h"

namespace mpinfer::apps {
namespace {

namespace fs = std::filesystem;
using Values = std::vector<std::string>;

// A directory for the test's files; variables set through it are gone with it.
class Place {
 public:
  Place() {
    std::string pattern = (fs::temp_directory_path() / "mpinfer-options-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
    set("HF_HUB_CACHE", path_.string());
  }
  ~Place() {
    for (const std::string& name : variables_) ::unsetenv(name.c_str());
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

  void set(const std::string& name, const std::string& value) {
    ::setenv(name.c_str(), value.c_str(), 1);
    variables_.push_back(name);
  }
  std::string write(const std::string& name, const std::string& bytes) const {
    const fs::path path = path_ / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << bytes;
    return path.string();
  }
  fs::path path() const { return path_; }

 private:
  fs::path path_;
  Values variables_;
};

Parsed parse(const Values& arguments) {
  std::vector<const char*> argv = {"mpinfer"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  return parse_options(static_cast<int>(argv.size()), argv.data());
}

Options run_with(Values more) {
  Values arguments = {"run", "--model", "m", "-i", "in.jsonl", "-o", "out.jsonl"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return parse(arguments).options;
}

std::string refusal_of(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const Error& error) {
    CHECK(error.exit_code() == ExitCode::kUsage);
    return error.what();
  }
  return "accepted";
}

bool has(const std::string& text, const std::string& part) {
  UNSCOPED_INFO(text);
  return text.find(part) != std::string::npos;
}

TEST_CASE("Unknown flags, variables, keys and commands name the nearest") {
  Place place;
  CHECK(has(refusal_of([] { run_with({"--max-token", "3"}); }), "did you mean --max-tokens?"));
  CHECK(has(refusal_of([] { parse({"runn"}); }), "\"runn\" is no command; did you mean run?"));
  CHECK(refusal_of([] { run_with({"--qqqqqqqqqqqq"}); }).find("did you mean") == std::string::npos);
  const std::string file = place.write("run.toml", "max_tokens = 4\n");
  CHECK(has(refusal_of([&] { run_with({"-c", file}); }), "run.toml: max_tokens: unknown key"));
  CHECK(has(refusal_of([&] { run_with({"-c", file}); }), "did you mean max-tokens?"));
  place.set("MPINFER_TEMPRATURE", "1");
  CHECK(has(refusal_of([] { run_with({}); }),
            "MPINFER_TEMPRATURE: unknown variable; did you mean MPINFER_TEMPERATURE?"));
}

TEST_CASE("A flag beats the variable, the variable beats the file, the file beats the default") {
  Place place;
  const std::string file = place.write("run.toml", "max-tokens = 4\nseed = 4\ntop-p = 0.5\n");
  place.set("MPINFER_MAX_TOKENS", "3");
  place.set("MPINFER_SEED", "3");
  const Options options = run_with({"-c", file, "--max-tokens", "2"});
  CHECK(options.sampling.max_tokens == 2);
  CHECK(options.seed == 3);
  CHECK(options.sampling.top_p == 0.5);
  CHECK_FALSE(options.sampling.min_p.has_value());
  CHECK(options.origin.at("max-tokens") == "--max-tokens");
  CHECK(options.origin.at("seed") == "MPINFER_SEED");
  CHECK(options.origin.at("top-p") == file + ": top-p");
}

TEST_CASE("A bad value names where it came from") {
  Place place;
  CHECK(has(refusal_of([] { run_with({"--top-p", "2"}); }), "--top-p: \"2\""));
  const std::string file = place.write("run.toml", "top-p = \"high\"\n");
  CHECK(has(refusal_of([&] { run_with({"-c", file}); }), "run.toml: top-p: \"high\""));
  place.set("MPINFER_TOP_P", "low");
  CHECK(has(refusal_of([] { run_with({}); }), "MPINFER_TOP_P: \"low\""));
}

TEST_CASE("Files that are no flat TOML are refused") {
  Place place;
  const auto with = [&](const std::string& text) {
    const std::string file = place.write("run.toml", text);
    return refusal_of([&] { run_with({"-c", file}); });
  };
  CHECK(has(with("tp = = 2\n"), "line 1"));
  CHECK(has(with("[tp]\na = 1\n"), "must be a string, number, boolean or list"));
  CHECK(has(with("tp = []\n"), "tp: 0 values; takes one"));
  CHECK(has(with("tp = [1, 2]\n"), "tp: 2 values; takes one"));
  CHECK(has(with("tp = 1.5\n"), "is not a whole number"));
  CHECK(has(with("config = \"other.toml\"\n"), "config: unknown key"));
  CHECK(has(refusal_of([] { run_with({"-c", "/nowhere/run.toml"}); }), "/nowhere/run.toml"));
}

TEST_CASE("Lists are whole however they are given") {
  Place place;
  const std::string file = place.write(
      "run.toml", "stop-token-ids = [7, 8]\npp-layers = [3, 5]\nstop = [\"a\", \"b\"]\n");
  const Options from_file = run_with({"-c", file});
  CHECK(from_file.sampling.stop_token_ids == std::vector<int32_t>{7, 8});
  CHECK(from_file.pp_layers == std::vector<int32_t>{3, 5});
  CHECK(from_file.sampling.stop == Values{"a", "b"});
  const Options from_flags =
      run_with({"--stop-token-ids", "7,8", "--pp-layers", "3,5", "--stop", "a", "b"});
  CHECK(from_flags.sampling.stop_token_ids == from_file.sampling.stop_token_ids);
  CHECK(from_flags.pp_layers == from_file.pp_layers);
  CHECK(from_flags.sampling.stop == from_file.sampling.stop);
}

TEST_CASE("Switches may be given a value") {
  Place place;
  CHECK(run_with({}).sampling.ignore_eos == std::nullopt);
  CHECK(run_with({"--ignore-eos"}).sampling.ignore_eos == true);
  CHECK(run_with({"--ignore-eos=false"}).sampling.ignore_eos == false);
  place.set("MPINFER_OVERWRITE", "yes");
  CHECK(run_with({}).overwrite);
  CHECK_FALSE(run_with({"--overwrite=false"}).overwrite);
}

TEST_CASE("Short and long names of the layout are the same options") {
  Place place;
  for (const Values& layout :
       {Values{"-tp", "2", "-pp", "3", "-dp", "4"}, Values{"-tp=2", "-pp=3", "-dp=4"},
        Values{"--tp", "2", "--pp", "3", "--dp", "4"},
        Values{"--tensor-parallel-size", "2", "--pipeline-parallel-size", "3",
               "--data-parallel-size", "4"}}) {
    const Options options = run_with(layout);
    CHECK(options.tp == 2);
    CHECK(options.pp == 3);
    CHECK(options.dp == 4);
  }
  CHECK(has(refusal_of([] { run_with({"-tp", "0"}); }), "--tp: \"0\""));
  CHECK(run_with({"--tp", "2", "--tp", "4"}).tp == 4);
}

TEST_CASE("What a command needs is asked for; what excludes is refused") {
  Place place;
  CHECK(has(refusal_of([] { parse({"run", "-i", "a", "-o", "b"}); }), "--model DIR is missing"));
  CHECK(has(refusal_of([] { parse({"run", "--model", "m", "-o", "b"}); }), "-i FILE is missing"));
  CHECK(has(refusal_of([] { parse({"run", "--model", "m", "-i", "a"}); }), "-o FILE is missing"));
  CHECK(has(refusal_of([] { parse({"check", "--model", "m"}); }), "-i FILE is missing"));
  CHECK(has(refusal_of([] { run_with({"--prompt", "x"}); }), "exclude each other"));
  CHECK(has(refusal_of([] {
              run_with({"--partition", "dynamic", "--replica-sampling", "0:seed=1"});
            }),
            "--partition balanced"));
  CHECK(has(refusal_of([] {
              run_with({"--max-num-seqs", "9", "--max-num-batched-tokens", "8"});
            }),
            "is below --max-num-seqs 9"));
  CHECK(parse({"run", "--model", "m", "--prompt", "x"}).options.prompt == "x");
  CHECK(parse({"tokenize", "--tokenizer", "t", "-i", "a", "-o", "b"}).options.model.empty());
}

TEST_CASE("A key or variable of another command is left alone") {
  Place place;
  const std::string file =
      place.write("run.toml", "model = \"m\"\ntop-p = 0.5\noverwrite = true\n");
  place.set("MPINFER_RETURN_TOKEN_IDS", "1");
  const Options options =
      parse({"plan", "-c", file, "--gpus", "2", "--gpu-memory", "80GiB"}).options;
  CHECK(options.command == Command::kPlan);
  CHECK(options.plan_gpu_memory == int64_t{80} << 30);
  CHECK_FALSE(options.overwrite);
  CHECK_FALSE(options.return_token_ids);
}

TEST_CASE("Options arrive on other ranks as they were") {
  Place place;
  const std::string odd = "caf\xe9 \n.jsonl";  // Latin-1: no UTF-8
  const Options sent = run_with(
      {"--field", odd, "-tp", "2", "--temperature", "0.7", "--stop", "", "x", "--ignore-eos"});
  const Options options = deserialise(serialise(sent));
  CHECK(options.command == Command::kRun);
  CHECK(options.field == odd);
  CHECK(options.tp == 2);
  CHECK(options.sampling.temperature == 0.7);
  CHECK(options.sampling.stop == Values{"", "x"});
  CHECK(options.sampling.ignore_eos == true);
  CHECK(options.input == Values{"in.jsonl"});
  CHECK(options.given == sent.given);
  CHECK(options.origin == sent.origin);
}

TEST_CASE("Help and version are text, not errors") {
  Place place;
  CHECK(has(parse({}).text, "tokenize"));
  CHECK(has(parse({"--version"}).text, "mpinfer "));
  CHECK(has(parse({"run", "--help"}).text, "--replica-sampling"));
  const std::string all = parse({"--help-all"}).text;
  CHECK(all.find("Exit codes") == all.rfind("Exit codes"));
  for (const OptionSpec& spec : option_table()) CHECK(has(all, "--" + spec.name));
}

TEST_CASE("Hub names are found in the local cache or the download is named") {
  Place place;
  const std::string cache = place.path().string();
  CHECK(find_model("plain", cache) == "plain");
  CHECK(find_model("/nowhere/model", cache) == "/nowhere/model");
  CHECK(find_model("../a", cache) == "../a");
  CHECK(find_model("a/b/c", cache) == "a/b/c");
  const auto refused = [&] {
    try {
      find_model("org/name", cache);
    } catch (const Error& error) {
      CHECK(error.exit_code() == ExitCode::kModelRefused);
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  CHECK(has(refused(), "hf download org/name"));
  place.write("models--org--name/refs/main", "../../../elsewhere");
  CHECK(has(refused(), "hf download org/name"));
  place.write("models--org--name/refs/main", "abc123");
  CHECK(has(refused(), "hf download org/name"));
  place.write("models--org--name/snapshots/abc123/config.json", "{}");
  const std::string found = cache + "/models--org--name/snapshots/abc123";
  CHECK(find_model("org/name", cache) == found);
  const Options options =
      parse({"run", "--model", "org/name", "-i", "in.jsonl", "-o", "out.jsonl"}).options;
  CHECK(options.model == found);
  CHECK(deserialise(serialise(options)).model == found);
}

}  // namespace
}  // namespace mpinfer::apps
