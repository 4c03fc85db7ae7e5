package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"os"
	"strings"
)

// The picture's measures, in pixels.
const (
	pictureWidth = 900
	barsLeft     = 235 // titles end here
	barsRight    = 770 // figures begin here
	barsTop      = 64
	rowHeight    = 46
	barHeight    = 15
)

// pictureStyle follows the reader's light or dark mode; a viewer that knows neither sees the light one.
const pictureStyle = `
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 }
.small { font-size: 11px; fill: #59636e }
.native { fill: #8c959f }
.pgbridge { fill: #0969da }
.floor { stroke: #bc4c00; stroke-width: 2.5 }
.grid { stroke: #d1d9e0; stroke-width: 1 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .small { fill: #9198a1 }
  .native { fill: #6e7681 }
  .pgbridge { fill: #4493f8 }
  .floor { stroke: #f0883e }
  .grid { stroke: #3d444d }
}
`

// draw writes the picture to a file.
func (r *report) draw(path string) error { return os.WriteFile(path, r.picture(), 0o644) }

// picture is an SVG of bars: for each line native's rate is 1, and pgbridge's is beside it.
func (r *report) picture() []byte {
	p := picture{axis: r.axis()}
	height := barsTop + rowHeight*len(r.Lines) + 12
	p.put(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">`,
		pictureWidth, height, pictureWidth, height)
	p.put("<title>pgbridge and PostgreSQL's logical replication</title>\n<style>%s</style>", pictureStyle)
	p.text(0, 18, "title", "Rate, native logical replication = 1")
	p.legend(height)
	for i, l := range r.Lines {
		p.line(float64(barsTop+rowHeight*i), l)
	}
	p.put("</svg>")
	return p.svg.Bytes()
}

// axis returns the highest multiple of native's rate that is shown, a whole number.
func (r *report) axis() float64 {
	highest := 1.0
	for _, l := range r.Lines {
		for _, name := range standard() { // no others have bars
			if q := quotient(l.seconds(nativeName), l.seconds(name)); q != nil {
				highest = max(highest, *q)
			}
		}
	}
	return math.Ceil(highest)
}

// picture is one that is being drawn.
type picture struct {
	svg  bytes.Buffer
	axis float64
}

func (p *picture) put(format string, args ...any) { fmt.Fprintf(&p.svg, format+"\n", args...) }

func (p *picture) text(x, y float64, class, text string) {
	p.put(`<text x="%.1f" y="%.1f" class="%s">%s</text>`, x, y, class, html.EscapeString(text))
}

// at returns where a multiple of native's rate is.
func (p *picture) at(multiple float64) float64 {
	return barsLeft + multiple/p.axis*(barsRight-barsLeft)
}

func (p *picture) legend(height int) {
	for i, name := range []string{nativeName, pgbridgeName} {
		x := float64(barsLeft + 110*i)
		p.put(`<rect x="%.1f" y="30" width="12" height="12" class="%s"/>`, x, name)
		p.text(x+18, 41, "", name)
	}
	const x = barsLeft + 220
	p.put(`<line x1="%d" x2="%d" y1="28" y2="44" class="floor"/>`, x+6, x+6)
	p.text(x+18, 41, "", "decode floor: the slot read to nowhere")
	for multiple := 0.0; multiple <= p.axis; multiple++ {
		p.put(`<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" class="grid"/>`, p.at(multiple), p.at(multiple), barsTop-4, height-12)
		p.text(p.at(multiple)-3, barsTop-8, "small", fmt.Sprint(multiple))
	}
}

// line draws one line's title, bars and figures.
func (p *picture) line(y float64, l *result) {
	p.text(0, y+20, "", l.Title)
	p.text(0, y+35, "small", fmt.Sprintf("%d %s", l.Amount, l.Unit))
	native := l.seconds(nativeName)
	if native == nil || l.Ratio == nil {
		p.text(barsLeft+6, y+24, "small", "not compared; "+l.alone())
		return
	}
	for i, name := range []string{nativeName, pgbridgeName} {
		top := y + 5 + float64(i)*(barHeight+2)
		q := *quotient(native, l.seconds(name))
		p.put(`<rect x="%d" y="%.1f" width="%.1f" height="%d" class="%s"/>`, barsLeft, top, p.at(q)-barsLeft, barHeight, name)
		figure := l.figure(name)
		if name == pgbridgeName {
			figure = fmt.Sprintf("%.2f × · %s", q, figure)
		}
		p.text(barsRight+8, top+12, "small", figure)
	}
	if q := quotient(native, l.seconds(floorName)); q != nil {
		p.put(`<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" class="floor"/>`, p.at(*q), p.at(*q), y+2, y+8+2*barHeight)
	}
}

// figure is what a bar stands for: a rate, or a latency.
func (r *result) figure(rival string) string {
	if o := r.of(rival); o != nil && o.Latency != nil {
		return fmt.Sprintf("p50 %.2f ms", o.Latency.P50)
	}
	if r.Kind == kindIdle {
		return fmt.Sprintf("%.1f %% of a core", r.of(rival).CPU[sourceNode+" bridge"]*100 / *r.seconds(rival))
	}
	return r.rate(r.seconds(rival)) + "/s"
}

// alone tells of a line that has no ratio.
func (r *result) alone() string {
	var ran []string
	for _, o := range r.Rivals {
		if o.Seconds == nil {
			ran = append(ran, o.Rival+" failed")
		} else {
			ran = append(ran, o.Rival+" "+r.figure(o.Rival))
		}
	}
	return strings.Join(ran, ", ")
}
