// The verbs of the command: each adds its subcommand, with options and what it runs, to the
// application.
#pragma once

#include <CLI/CLI.hpp>

namespace indexcache::cli {

void add_inspect(CLI::App& app);
void add_search(CLI::App& app);
void add_overlap(CLI::App& app);
void add_train(CLI::App& app);
void add_distill(CLI::App& app);
void add_eval(CLI::App& app);
void add_generate(CLI::App& app);
void add_bench(CLI::App& app);
void add_trace(CLI::App& app);
void add_selftest(CLI::App& app);

}  // namespace indexcache::cli
