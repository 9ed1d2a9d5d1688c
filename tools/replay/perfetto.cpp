// SPDX-License-Identifier: Apache-2.0
#include "replay/perfetto.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <queue>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "common/protobuf.hpp"

namespace quire::tool {
namespace {

// Numbers of fields in perfetto/trace/*.proto.
namespace trace {
constexpr std::uint32_t kPacket = 1;
}
namespace packet {
constexpr std::uint32_t kTimestamp = 8;
constexpr std::uint32_t kSequenceId = 10;
constexpr std::uint32_t kTrackEvent = 11;
constexpr std::uint32_t kInternedData = 12;
constexpr std::uint32_t kSequenceFlags = 13;
constexpr std::uint32_t kTrackDescriptor = 60;
constexpr std::uint64_t kStateCleared = 1;
constexpr std::uint64_t kNeedsState = 2;
}  // namespace packet
namespace track {
constexpr std::uint32_t kUuid = 1;
constexpr std::uint32_t kName = 2;
constexpr std::uint32_t kProcess = 3;
constexpr std::uint32_t kParentUuid = 5;
constexpr std::uint32_t kCounter = 8;
constexpr std::uint32_t kChildOrdering = 11;
constexpr std::uint32_t kSiblingRank = 12;
constexpr std::uint64_t kExplicit = 3;
constexpr std::uint32_t kProcessPid = 1;
constexpr std::uint32_t kProcessName = 6;
constexpr std::uint32_t kCounterUnitName = 6;
}  // namespace track
namespace event {
constexpr std::uint32_t kAnnotation = 4;
constexpr std::uint32_t kType = 9;
constexpr std::uint32_t kNameId = 10;
constexpr std::uint32_t kTrackUuid = 11;
constexpr std::uint32_t kName = 23;
constexpr std::uint32_t kCounterValue = 30;
constexpr std::uint64_t kBegin = 1;
constexpr std::uint64_t kEnd = 2;
constexpr std::uint64_t kCounter = 4;
constexpr std::uint32_t kAnnotationNameId = 1;
constexpr std::uint32_t kAnnotationInteger = 4;
}  // namespace event
namespace interned {
constexpr std::uint32_t kEventName = 2;
constexpr std::uint32_t kAnnotationName = 3;
constexpr std::uint32_t kId = 1;
constexpr std::uint32_t kText = 2;
}  // namespace interned

/// Names that occur again and again are written once; their ids are these, from 1.
enum class Word : std::uint8_t {
  kWaiting,
  kPrefill,
  kDecode,
  kPreempted,
  kMixed,
  kTokens,
  kStep,
  kPrefillTokens,
  kDecodeTokens,
  kPromptTokens,
  kNewTokens,
  kPreemptions
};
constexpr std::array<std::string_view, 12> kWords = {
    "waiting",    "prefill",    "decode",         "preempted",     "prefill and decode",
    "tokens",     "step",       "prefill tokens", "decode tokens", "prompt tokens",
    "new tokens", "preemptions"};
std::uint64_t id_of(Word word) { return static_cast<std::uint64_t>(word) + 1; }

using Annotations = std::initializer_list<std::pair<Word, std::int64_t>>;

/// Ids of tracks.
constexpr std::uint64_t kProcess = 1;
constexpr std::uint64_t kSteps = 2;
constexpr std::uint64_t kRequests = 3;
constexpr std::uint64_t kFirstCounter = 10;
constexpr std::uint64_t kFirstLane = 1000;

/// A counter of the steps.
struct Counter {
  const char* name;
  const char* unit;
  std::int64_t (*value)(const StepRecord&);
};
constexpr std::array kCounters = {
    Counter{"pages in use", "pages",
            [](const StepRecord& s) { return std::int64_t{s.used_pages}; }},
    Counter{"tokens in cache", "tokens", [](const StepRecord& s) { return s.cached_tokens; }},
    Counter{"running", "requests", [](const StepRecord& s) { return std::int64_t{s.running}; }},
    Counter{"waiting", "requests", [](const StepRecord& s) { return std::int64_t{s.waiting}; }},
    Counter{"prefill", "tokens a step",
            [](const StepRecord& s) { return std::int64_t{s.prefill_tokens}; }},
    Counter{"decode", "tokens a step",
            [](const StepRecord& s) { return std::int64_t{s.decode_tokens}; }}};

class Writer {
 public:
  explicit Writer(std::ostream& out) : out_(out) {
    ProtoMessage words;
    for (std::size_t i = 0; i < kWords.size(); ++i) {
      ProtoMessage name;
      name.integer(interned::kId, i + 1).text(interned::kText, kWords[i]);
      words.message(interned::kEventName, name).message(interned::kAnnotationName, name);
    }
    ProtoMessage first;
    first.integer(packet::kSequenceFlags, packet::kStateCleared)
        .message(packet::kInternedData, words);
    write(first);
  }

  void process(std::string_view name) {
    ProtoMessage process;
    process.integer(track::kProcessPid, 1).text(track::kProcessName, name);
    ProtoMessage descriptor;
    descriptor.integer(track::kUuid, kProcess)
        .message(track::kProcess, process)
        .integer(track::kChildOrdering, track::kExplicit);
    write(descriptor_packet(descriptor));
  }
  /// @param unit  Of a counter; empty for a track of slices.
  void new_track(std::uint64_t uuid, std::uint64_t parent, std::string_view name,
                 std::uint64_t rank, std::string_view unit = {}) {
    ProtoMessage descriptor;
    descriptor.integer(track::kUuid, uuid)
        .integer(track::kParentUuid, parent)
        .text(track::kName, name)
        .integer(track::kSiblingRank, rank)
        .integer(track::kChildOrdering, track::kExplicit);
    if (!unit.empty()) {
      ProtoMessage counter;
      descriptor.message(track::kCounter, counter.text(track::kCounterUnitName, unit));
    }
    write(descriptor_packet(descriptor));
  }

  void slice(std::uint64_t track, Word name, double begin, double end, Annotations annotations) {
    event_.clear();
    event_.integer(event::kType, event::kBegin).integer(event::kTrackUuid, track);
    event_.integer(event::kNameId, id_of(name));
    annotate(annotations);
    write_event(begin);
    end_slice(track, end);
  }
  void begin_slice(std::uint64_t track, std::string_view name, double time,
                   Annotations annotations) {
    event_.clear();
    event_.integer(event::kType, event::kBegin).integer(event::kTrackUuid, track);
    event_.text(event::kName, name);
    annotate(annotations);
    write_event(time);
  }
  void end_slice(std::uint64_t track, double time) {
    event_.clear();
    event_.integer(event::kType, event::kEnd).integer(event::kTrackUuid, track);
    write_event(time);
  }
  void count(std::uint64_t track, double time, std::int64_t value) {
    event_.clear();
    event_.integer(event::kType, event::kCounter).integer(event::kTrackUuid, track);
    event_.integer(event::kCounterValue, static_cast<std::uint64_t>(value));
    write_event(time);
  }

 private:
  static ProtoMessage descriptor_packet(const ProtoMessage& descriptor) {
    ProtoMessage packet;
    packet.message(packet::kTrackDescriptor, descriptor);
    return packet;
  }
  void annotate(Annotations annotations) {
    for (const auto& [word, value] : annotations) {
      annotation_.clear();
      annotation_.integer(event::kAnnotationNameId, id_of(word))
          .integer(event::kAnnotationInteger, static_cast<std::uint64_t>(value));
      event_.message(event::kAnnotation, annotation_);
    }
  }
  void write_event(double time) {
    constexpr double kNanoseconds = 1e9;
    packet_.clear();
    packet_
        .integer(packet::kTimestamp,
                 static_cast<std::uint64_t>(std::llround(std::max(0.0, time) * kNanoseconds)))
        .integer(packet::kSequenceFlags, packet::kNeedsState)
        .message(packet::kTrackEvent, event_);
    write(packet_);
  }
  void write(ProtoMessage& packet) {
    packet.integer(packet::kSequenceId, 1);
    ProtoMessage framed;
    framed.message(trace::kPacket, packet);
    out_ << framed.bytes();
  }
  void write(ProtoMessage&& packet) { write(packet); }

  std::ostream& out_;
  ProtoMessage packet_, event_, annotation_;  // kept for their memory
};

void write_steps(Writer& writer, const Records<StepRecord>& steps) {
  std::array<std::int64_t, kCounters.size()> last;
  last.fill(-1);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const StepRecord& step = steps[i];
    const Word kind = step.num_prefills == 0  ? Word::kDecode
                      : step.num_decodes == 0 ? Word::kPrefill
                                              : Word::kMixed;
    writer.slice(kSteps, kind, step.begin, step.end,
                 {{Word::kStep, static_cast<std::int64_t>(step.step)},
                  {Word::kPrefillTokens, step.prefill_tokens},
                  {Word::kDecodeTokens, step.decode_tokens}});
    for (std::size_t c = 0; c < kCounters.size(); ++c) {
      const std::int64_t value = kCounters[c].value(step);
      if (value != last[c]) writer.count(kFirstCounter + c, step.begin, value);
      last[c] = value;
    }
  }
}

/// What a request did, in a slice of its whole life.
void write_life(Writer& writer, std::uint64_t track, const RequestRecord& life,
                const std::vector<RequestEvent>& events) {
  writer.begin_slice(track, fmt::format("request {}", life.request), life.submitted,
                     {{Word::kPromptTokens, life.prompt_tokens},
                      {Word::kNewTokens, life.new_tokens},
                      {Word::kPreemptions, life.num_preemptions}});
  double waits_since = life.submitted;
  Word waiting = Word::kWaiting;
  for (const RequestEvent& event : events) {
    if (event.kind == EventKind::kAdmit && event.begin > waits_since) {
      writer.slice(track, waiting, waits_since, event.begin, {});
    }
    if (event.kind == EventKind::kPreempt) {
      waits_since = event.begin;
      waiting = Word::kPreempted;
    }
    if (event.kind != EventKind::kPrefill && event.kind != EventKind::kDecode) continue;
    writer.slice(track, event.kind == EventKind::kPrefill ? Word::kPrefill : Word::kDecode,
                 event.begin, event.end, {{Word::kTokens, event.num_tokens}});
  }
  writer.end_slice(track, life.finished);
}

std::vector<RequestRecord> by_submission(const Records<RequestRecord>& ended) {
  std::vector<RequestRecord> lives;
  for (std::size_t i = 0; i < ended.size(); ++i) {
    if (!std::isnan(ended[i].submitted)) lives.push_back(ended[i]);
  }
  std::ranges::stable_sort(lives, {}, &RequestRecord::submitted);
  return lives;
}

void write_lives(Writer& writer, const Recorder& recorder) {
  std::unordered_map<std::uint64_t, std::vector<RequestEvent>> events_of;
  const Records<RequestEvent> events = recorder.events();
  for (std::size_t i = 0; i < events.size(); ++i) {
    events_of[events[i].request].push_back(events[i]);
  }
  const std::vector<RequestRecord> lives = by_submission(recorder.ended());
  const std::vector<std::size_t> lanes = lanes_of(lives);
  std::size_t num_lanes = 0;
  for (std::size_t i = 0; i < lives.size(); ++i) {
    for (; num_lanes <= lanes[i]; ++num_lanes) {
      writer.new_track(kFirstLane + num_lanes, kRequests, fmt::format("lane {}", num_lanes),
                       num_lanes);
    }
    write_life(writer, kFirstLane + lanes[i], lives[i], events_of[lives[i].request]);
  }
}

}  // namespace

std::vector<std::size_t> lanes_of(const std::vector<RequestRecord>& lives) {
  using Busy = std::pair<double, std::size_t>;  // until, lane
  std::priority_queue<Busy, std::vector<Busy>, std::greater<>> busy;
  std::priority_queue<std::size_t, std::vector<std::size_t>, std::greater<>> free;
  std::vector<std::size_t> lanes;
  lanes.reserve(lives.size());
  std::size_t num_lanes = 0;
  for (const RequestRecord& life : lives) {
    while (!busy.empty() && busy.top().first <= life.submitted) {
      free.push(busy.top().second);
      busy.pop();
    }
    if (free.empty()) free.push(num_lanes++);
    lanes.push_back(free.top());
    free.pop();
    busy.emplace(life.finished, lanes.back());
  }
  return lanes;
}

void write_perfetto(std::ostream& out, const Recorder& recorder) {
  Writer writer(out);
  writer.process("quire replay");
  writer.new_track(kSteps, kProcess, "steps", 0);
  for (std::size_t c = 0; c < kCounters.size(); ++c) {
    writer.new_track(kFirstCounter + c, kProcess, kCounters[c].name, c + 1, kCounters[c].unit);
  }
  writer.new_track(kRequests, kProcess, "requests", kCounters.size() + 1);
  write_steps(writer, recorder.steps());
  write_lives(writer, recorder);
}

}  // namespace quire::tool
