#include "indexcache/eval/device_spans.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include "indexcache/base/span.h"

namespace indexcache {

DeviceSpans::DeviceSpans(c10::Device device) {
  if (device.is_cpu()) return;
  TimedSpan::set_synchronize([device] {
    const c10::impl::VirtualGuardImpl runtime(device.type());
    runtime.synchronizeDevice(device.has_index() ? device.index() : runtime.getDevice().index());
  });
}

DeviceSpans::~DeviceSpans() { TimedSpan::set_synchronize({}); }

}  // namespace indexcache
