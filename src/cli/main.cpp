// indexcache VERB MODEL ...: parses the command line, runs one verb, maps errors to exit codes.
//   0 done   1 bad input (one line on stderr)   2 bad command line   3 the machine failed
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <vector>

#include "cli/provenance.h"
#include "cli/verbs.h"
#include "indexcache/base/error.h"

int main(int argc, char** argv) {
  using namespace indexcache::cli;
  CLI::App app("indexcache: find, train, prove and run cross-layer index sharing for DSA models",
               "indexcache");
  app.set_version_flag("--version", "indexcache, commit " + commit());
  app.require_subcommand(1);
  app.fallthrough();
  // In the order of --help.
  const std::vector<void (*)(CLI::App&)> verbs = {add_inspect, add_search,  add_overlap,  add_train,
                                                  add_distill, add_eval,    add_generate, add_bench,
                                                  add_trace,   add_selftest};
  for (const auto add : verbs) add(app);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const indexcache::InputError& error) {
    fmt::print(stderr, "indexcache: {}\n", error.what());
    return 1;
  } catch (const c10::Error& error) {  // libtorch: out of memory, a failed kernel
    fmt::print(stderr, "indexcache: {}\n", error.what_without_backtrace());
    return 3;
  } catch (const std::exception& error) {
    fmt::print(stderr, "indexcache: {}\n", error.what());
    return 3;
  }
}
