// Tests of what several processes do together.
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace indexcache::testing {

// A TCP port that no other test gets while this lives. It is bound with SO_REUSEADDR and nobody
// listens on it: so a server that sets SO_REUSEADDR too can, and nothing else is given the number.
class ReservedPort {
 public:
  ReservedPort() : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const int on = 1;
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_ANY);
    socklen_t size = sizeof(address);
    if (::setsockopt(socket_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
        ::bind(socket_, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
        ::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
      ADD_FAILURE() << "no free port: " << std::strerror(errno);
    }
    number_ = ntohs(address.sin_port);
  }
  ~ReservedPort() { ::close(socket_); }
  ReservedPort(const ReservedPort&) = delete;
  ReservedPort& operator=(const ReservedPort&) = delete;

  int number() const { return number_; }
  // From now on nobody else can.
  void listen() { ASSERT_EQ(::listen(socket_, 1), 0) << std::strerror(errno); }

 private:
  int socket_;
  int number_ = 0;
};

// Runs body(0) to body(count - 1), each in a process forked from this one, and says how each ended:
// "passed", "failed" (a failed expectation or an exception, which it has printed), "killed by
// signal N", or "still running" (and now killed) at the deadline. This process should have started
// no threads.
inline std::vector<std::string> run_processes(
    int count, const std::function<void(int)>& body,
    std::chrono::seconds deadline = std::chrono::seconds(120)) {
  std::fflush(nullptr);
  std::vector<pid_t> processes;
  for (int i = 0; i < count; ++i) {
    const auto process = ::fork();
    if (process == 0) {
      try {
        body(i);
      } catch (const std::exception& error) {
        ADD_FAILURE() << "process " << i << ": " << error.what();
      }
      std::fflush(nullptr);
      ::_exit(::testing::Test::HasFailure() ? 1 : 0);
    }
    EXPECT_GT(process, 0) << std::strerror(errno);
    processes.push_back(process);
  }

  const auto end = std::chrono::steady_clock::now() + deadline;
  std::vector<std::string> outcomes;
  for (const auto process : processes) {
    int status = 0;
    pid_t found = 0;
    while ((found = ::waitpid(process, &status, WNOHANG)) == 0 &&
           std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    if (found == 0) {
      ::kill(process, SIGKILL);
      ::waitpid(process, &status, 0);
      outcomes.push_back("still running");
    } else if (WIFSIGNALED(status)) {
      outcomes.push_back("killed by signal " + std::to_string(WTERMSIG(status)));
    } else {
      outcomes.push_back(WEXITSTATUS(status) == 0 ? "passed" : "failed");
    }
  }
  return outcomes;
}

}  // namespace indexcache::testing
