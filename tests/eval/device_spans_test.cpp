#include "indexcache/eval/device_spans.h"

#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <gtest/gtest.h>

#include <vector>

#include "indexcache/base/span.h"

namespace indexcache {
namespace {

std::vector<int> synchronized;  // the index of the device, a wait

// Stands for a device that this machine lacks; its current device is 5.
class CountingDevice : public c10::impl::DeviceGuardImplInterface {
 public:
  void synchronizeDevice(const c10::DeviceIndex index) const override {
    synchronized.push_back(index);
  }
  c10::DeviceType type() const override { return c10::DeviceType::PrivateUse1; }
  c10::Device getDevice() const override { return {type(), 5}; }
  c10::Device exchangeDevice(c10::Device) const override { return getDevice(); }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 8; }
};
const c10::impl::DeviceGuardImplRegistrar kRegistrar(c10::DeviceType::PrivateUse1,
                                                     new CountingDevice);

void open_a_span() {
  TimedSpan::enable(true);
  { const TimedSpan span("work"); }
  TimedSpan::enable(false);
  TimedSpan::take();
}

class DeviceSpansTest : public ::testing::Test {
 protected:
  void SetUp() override { synchronized.clear(); }
};

TEST_F(DeviceSpansTest, ASpanWaitsForItsDeviceAtBothEnds) {
  const DeviceSpans spans(c10::Device(c10::DeviceType::PrivateUse1, 3));
  open_a_span();
  EXPECT_EQ(synchronized, (std::vector<int>{3, 3}));
}

TEST_F(DeviceSpansTest, ADeviceWithoutAnIndexIsTheCurrentOne) {
  const DeviceSpans spans{c10::Device(c10::DeviceType::PrivateUse1)};
  open_a_span();
  EXPECT_EQ(synchronized, (std::vector<int>{5, 5}));
}

TEST_F(DeviceSpansTest, NothingWaitsAfterwardsNorOnTheCpu) {
  { const DeviceSpans spans(c10::Device(c10::DeviceType::PrivateUse1, 3)); }
  open_a_span();
  const DeviceSpans spans{c10::Device(c10::DeviceType::CPU)};
  open_a_span();
  EXPECT_TRUE(synchronized.empty());
}

}  // namespace
}  // namespace indexcache
