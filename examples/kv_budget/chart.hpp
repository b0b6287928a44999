// SPDX-License-Identifier: Apache-2.0
/// @file
/// Bytes of a cache against its context: bars for a terminal, a picture as SVG.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "budget_rows.hpp"
#include "sizes.hpp"

namespace kv_budget {

/// One line of a chart.
struct Curve {
  std::string label;
  gqa::ModelShape shape;
};

inline std::vector<Curve> curves_of(const std::vector<Row>& rows) {
  std::vector<Curve> curves;
  for (const Row& row : rows) curves.push_back({row.label, row.shape});
  return curves;
}

/// Contexts that double up to the one asked about.
inline std::vector<Index> contexts_up_to(Index context, int count) {
  std::vector<Index> contexts;
  for (int i = count - 1; i >= 0; --i)
    if (const Index each = context >> i; each > 0 && (contexts.empty() || contexts.back() != each))
      contexts.push_back(each);
  return contexts;
}

/// A bar of `eighths` eighths of a cell.
inline std::string bar(Index eighths) {
  static constexpr const char* parts[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  std::string text;
  for (Index i = 0; i < eighths / 8; ++i) text += "█";
  return text + parts[eighths % 8];
}

inline void print_bars(const std::vector<Curve>& curves, const Question& q, Index available) {
  constexpr Index cells = 56;
  Index most = 1;
  std::size_t width = 0;
  for (const Curve& curve : curves) {
    most = std::max(most, gqa::kv_batch_bytes(curve.shape, q.plan, q.context, q.sequences));
    width = std::max(width, curve.label.size());
  }
  std::printf("\nbytes of %s against context%s\n",
              q.sequences == 1 ? "a sequence" : (with_commas(q.sequences) + " sequences").c_str(),
              available > 0 ? (", ! more than " + in_gb(available)).c_str() : "");
  for (const Index context : contexts_up_to(q.context, 4)) {
    for (std::size_t i = 0; i < curves.size(); ++i) {
      const Index bytes = gqa::kv_batch_bytes(curves[i].shape, q.plan, context, q.sequences);
      const double share = static_cast<double>(bytes) / static_cast<double>(most);
      const auto eighths = std::max<Index>(1, static_cast<Index>(std::lround(share * 8 * cells)));
      std::printf("%11s  %-*s %s %s%s\n", i == 0 ? with_commas(context).c_str() : "", static_cast<int>(width),
                  curves[i].label.c_str(), bar(eighths).c_str(), in_gb(bytes).c_str(),
                  available > 0 && bytes > available ? " !" : "");
    }
  }
}

/// An SVG picture, both axes logarithmic: the same factor is the same distance everywhere, and a window is a line that levels off.
class SvgChart {
 public:
  SvgChart(const std::vector<Curve>& curves, const Question& q, std::string title)
      : curves_(curves), q_(q), title_(std::move(title)), contexts_(contexts_up_to(q.context, 10)) {
    if (contexts_.size() < 2) contexts_ = {1, std::max<Index>(2, q.context)};
    low_ = 1e300;
    for (const Curve& curve : curves_)
      for (const Index context : contexts_) {
        const auto bytes = static_cast<double>(gqa::kv_batch_bytes(curve.shape, q_.plan, context, q_.sequences));
        low_ = std::min(low_, bytes);
        high_ = std::max(high_, bytes);
      }
  }

  /// @param available bytes to draw a line at; 0: none
  std::string draw(Index available) {
    if (available > 0) {
      high_ = std::max(high_, static_cast<double>(available));
      low_ = std::min(low_, static_cast<double>(available));
    }
    bottom_ = std::floor(std::log10(low_));
    top_ = std::max(bottom_ + 1, std::ceil(std::log10(high_)));
    text_ =
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 760 460\" font-family=\"DejaVu Sans, Verdana, "
        "sans-serif\" "
        "font-size=\"12\">\n<rect width=\"760\" height=\"460\" fill=\"white\"/>\n";
    label(kLeft, 24, "start", title_, "#222", "font-size=\"15\" font-weight=\"bold\"");
    grid();
    place_labels();
    for (std::size_t i = 0; i < curves_.size(); ++i) curve(i);
    if (available > 0) memory_line(static_cast<double>(available));
    return text_ + "</svg>\n";
  }

 private:
  static constexpr double kLeft = 76, kRight = 600, kTop = 48, kBottom = 400;
  static constexpr const char* kColours[] = {"#b2182b", "#2166ac", "#1b7837", "#e08214", "#762a83", "#666666"};

  double x(double context) const {
    const double first = std::log2(static_cast<double>(contexts_.front())),
                 last = std::log2(static_cast<double>(contexts_.back()));
    return kLeft + (kRight - kLeft) * (std::log2(context) - first) / (last - first);
  }
  double y(double bytes) const { return kBottom - (kBottom - kTop) * (std::log10(bytes) - bottom_) / (top_ - bottom_); }

  static std::string escaped(const std::string& text) {
    std::string safe;
    for (const char c : text) safe += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : std::string(1, c);
    return safe;
  }
  static std::string at(double value) { return printed("%.1f", value); }
  void label(double left, double top, const char* anchor, const std::string& text, const std::string& colour,
             const std::string& more = "") {
    text_ += "<text x=\"" + at(left) + "\" y=\"" + at(top) + "\" text-anchor=\"" + anchor + "\" fill=\"" + colour +
             "\" " + more + ">" + escaped(text) + "</text>\n";
  }
  void line(double x1, double y1, double x2, double y2, const std::string& style) {
    text_ += "<line x1=\"" + at(x1) + "\" y1=\"" + at(y1) + "\" x2=\"" + at(x2) + "\" y2=\"" + at(y2) + "\" " + style +
             "/>\n";
  }

  void grid() {
    for (double power = bottom_; power <= top_ + 0.5; ++power) {
      const double bytes = std::pow(10.0, power);
      line(kLeft, y(bytes), kRight, y(bytes), "stroke=\"#ddd\"");
      std::string name = in_gb(bytes);
      if (const std::size_t zero = name.find(".0 "); zero != std::string::npos) name.erase(zero, 2);
      label(kLeft - 8, y(bytes) + 4, "end", name, "#444");
    }
    const std::size_t step = contexts_.size() > 7 ? 2 : 1;
    for (std::size_t i = 0; i < contexts_.size(); ++i) {
      const auto context = static_cast<double>(contexts_[i]);
      line(x(context), kTop, x(context), kBottom, "stroke=\"#eee\"");
      if ((contexts_.size() - 1 - i) % step == 0)
        label(x(context), kBottom + 18, i + 1 == contexts_.size() ? "end" : "middle", with_commas(contexts_[i]),
              "#444");
    }
    label((kLeft + kRight) / 2, kBottom + 42, "middle", "tokens in a sequence", "#222");
  }

  void memory_line(double available) {
    line(kLeft, y(available), kRight, y(available), "stroke=\"#444\" stroke-dasharray=\"6 4\"");
    label(kLeft + 6, y(available) - 5, "start", in_gb(available) + " beside the weights", "#444",
          "paint-order=\"stroke\" stroke=\"white\" stroke-width=\"5\"");
  }

  /// Where the labels at the right go: at their lines' ends, but no two closer than two lines of text.
  void place_labels() {
    places_.assign(curves_.size(), 0.0);
    std::vector<std::size_t> order(curves_.size());
    for (std::size_t i = 0; i < order.size(); ++i) {
      order[i] = i;
      places_[i] = y(end_bytes(i));
    }
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return places_[a] < places_[b]; });
    for (std::size_t i = 1; i < order.size(); ++i)
      places_[order[i]] = std::max(places_[order[i]], places_[order[i - 1]] + 32);
    double lowest = 440;  // and those that this pushed out of the picture push back
    for (std::size_t i = order.size(); i-- > 0; lowest = places_[order[i]] - 32)
      places_[order[i]] = std::min(places_[order[i]], lowest);
  }
  double end_bytes(std::size_t which) const {
    return static_cast<double>(gqa::kv_batch_bytes(curves_[which].shape, q_.plan, contexts_.back(), q_.sequences));
  }

  void curve(std::size_t which) {
    const std::string colour = kColours[which % std::size(kColours)];
    std::string points;
    constexpr int steps = 96;  // enough that a window's corner shows
    const double first = std::log2(static_cast<double>(contexts_.front())),
                 last = std::log2(static_cast<double>(contexts_.back()));
    for (int i = 0; i <= steps; ++i) {
      const auto context = static_cast<Index>(std::llround(std::exp2(first + (last - first) * i / steps)));
      const auto bytes = static_cast<double>(gqa::kv_batch_bytes(curves_[which].shape, q_.plan, context, q_.sequences));
      points += at(x(static_cast<double>(context))) + "," + at(y(bytes)) + " ";
    }
    text_ += "<polyline fill=\"none\" stroke=\"" + colour + "\" stroke-width=\"2.2\" points=\"" + points + "\"/>\n";
    label(kRight + 10, places_[which] + 1, "start", curves_[which].label, colour, "font-weight=\"bold\"");
    label(kRight + 10, places_[which] + 15, "start", in_gb(end_bytes(which)), colour);
  }

  const std::vector<Curve>& curves_;
  const Question& q_;
  std::string title_;
  std::vector<Index> contexts_;
  std::vector<double> places_;
  double low_ = 0, high_ = 0, bottom_ = 0, top_ = 1;
  std::string text_;
};

}  // namespace kv_budget
