// Timed spans of work on a device: while one of these lives, a span waits for the device before it
// reads the clock, so that its seconds are those of the work and not of its launch.
#pragma once

#include <c10/core/Device.h>

namespace indexcache {

class DeviceSpans {
 public:
  // The CPU, which is never behind, needs no wait.
  explicit DeviceSpans(c10::Device device);
  ~DeviceSpans();
  DeviceSpans(const DeviceSpans&) = delete;
  DeviceSpans& operator=(const DeviceSpans&) = delete;
};

}  // namespace indexcache
