package report

import (
	"errors"
	"fmt"
	"image/color"
	"math"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const (
	width  = 25 * vg.Centimeter
	height = 12 * vg.Centimeter
	stroke = vg.Length(1.8)
)

// palette can be told apart by those who see fewer colors (Okabe and Ito).
var palette = []color.Color{
	color.RGBA{0x99, 0x99, 0x99, 0xff},
	color.RGBA{0xe6, 0x9f, 0x00, 0xff},
	color.RGBA{0x56, 0xb4, 0xe9, 0xff},
	color.RGBA{0xd5, 0x5e, 0x00, 0xff},
	color.RGBA{0x00, 0x72, 0xb2, 0xff},
	color.RGBA{0x00, 0x9e, 0x73, 0xff},
	color.RGBA{0xcc, 0x79, 0xa7, 0xff},
}

// black instead of a color of the palette.
const black = -1

func pick(i int) color.Color {
	if i == black {
		return color.Black
	}
	return palette[i%len(palette)]
}

func newPlot(title, x, y string) *plot.Plot {
	p := plot.New()
	p.BackgroundColor = color.White // pages may be dark
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	for _, s := range []*text.Style{
		&p.Title.TextStyle, &p.X.Label.TextStyle, &p.Y.Label.TextStyle,
		&p.X.Tick.Label, &p.Y.Tick.Label, &p.Legend.TextStyle,
	} {
		s.Font.Variant = "Sans"
		s.Font.Size = font.Points(11)
	}
	p.Title.TextStyle.Font.Size = font.Points(14)
	p.Title.Padding = vg.Points(8)
	p.Legend.Top, p.Legend.Left = true, true // of its own space, see write
	p.Legend.Padding = vg.Points(2)
	p.Legend.ThumbnailWidth = vg.Points(24)
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{0xe4}, color.Gray{0xe4}
	p.Add(grid)
	return p
}

// logarithmic makes an axis logarithmic, with a label at 1, 2 and 5 of each decade,
// when all data are added: there must be some, and only positive ones.
func logarithmic(a *plot.Axis) {
	const room = 1.15
	a.Min, a.Max = a.Min/room, a.Max*room
	a.Scale = plot.LogScale{}
	a.Tick.Marker = plot.TickerFunc(func(lo, hi float64) []plot.Tick {
		var ticks []plot.Tick
		for decade := math.Pow(10, math.Floor(math.Log10(lo))); decade <= hi; decade *= 10 {
			for m := 1.0; m < 10; m++ {
				v := decade * m
				if v < lo || v > hi {
					continue
				}
				t := plot.Tick{Value: v}
				if m == 1 || m == 2 || m == 5 {
					t.Label = fmt.Sprintf("%.3g", v)
				}
				ticks = append(ticks, t)
			}
		}
		return ticks
	})
}

// write draws a plot with its legend beside it, where it hides nothing.
func write(p *plot.Plot, file string) (err error) {
	canvas := vgsvg.New(width, height)
	whole := draw.New(canvas)
	canvas.SetColor(p.BackgroundColor)
	canvas.Fill(whole.Path())
	legend := p.Legend
	p.Legend = plot.NewLegend()
	const beside = 6.4 * vg.Centimeter
	p.Draw(draw.Crop(whole, vg.Points(6), -beside, vg.Points(6), -vg.Points(6)))
	legend.Draw(draw.Crop(whole, width-beside+vg.Points(12), 0, 0, -vg.Points(30)))
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = canvas.WriteTo(f)
	return errors.Join(err, f.Close())
}

type style struct {
	color  int
	dashed bool
	marks  bool
}

func addLine(p *plot.Plot, name string, xys plotter.XYs, s style) error {
	if len(xys) == 0 {
		return nil
	}
	l, points, err := plotter.NewLinePoints(xys)
	if err != nil {
		return err
	}
	l.Color, l.Width = pick(s.color), stroke
	if s.dashed {
		l.Dashes = []vg.Length{vg.Points(5), vg.Points(3)}
	}
	p.Add(l)
	if s.marks {
		points.Color, points.Shape, points.Radius = pick(s.color), draw.CircleGlyph{}, vg.Points(3.5)
		p.Add(points)
	}
	p.Legend.Add(name, l)
	return nil
}

// mark is the thumbnail of what addMark draws.
func mark() plot.Thumbnailer {
	return &plotter.Scatter{GlyphStyle: draw.GlyphStyle{Color: color.Black, Shape: draw.CircleGlyph{}, Radius: vg.Points(4)}}
}

// addMark marks where an application was ready.
func addMark(p *plot.Plot, at plotter.XY, c int) error {
	s, err := plotter.NewScatter(plotter.XYs{at})
	if err != nil {
		return err
	}
	s.Color, s.Shape, s.Radius = pick(c), draw.CircleGlyph{}, vg.Points(5)
	p.Add(s)
	return nil
}

// group are the bars of one color.
type group struct {
	name   string
	values []float64
}

// addBars draws groups of bars side by side. They begin at the lower end of the
// axis, which may be logarithmic.
func addBars(p *plot.Plot, labels []string, groups []group) {
	const share = 0.8 // of the distance between two labels
	w := share / float64(len(groups))
	low, high := math.Inf(1), 0.0
	for _, g := range groups {
		for _, v := range g.values {
			if v > 0 {
				low = min(low, v)
			}
			high = max(high, v)
		}
	}
	const room = 1.6 // to see the smallest
	low, high = low/room, high*room
	for i, g := range groups {
		p.Add(&bars{group: g, low: low, high: high, offset: -share/2 + w*float64(i), width: w, color: pick(i)})
		p.Legend.Add(g.name, &bars{color: pick(i)})
	}
	var ticks []plot.Tick
	for i, l := range labels {
		ticks = append(ticks, plot.Tick{Value: float64(i), Label: l})
	}
	p.X.Tick.Marker = plot.ConstantTicks(ticks)
	p.X.Tick.Label.Rotation = math.Pi / 5
	p.X.Tick.Label.XAlign, p.X.Tick.Label.YAlign = draw.XRight, draw.YCenter
}

// bars are a plotter that works on logarithmic axes: the library's bars begin at 0.
type bars struct {
	group
	low, high, offset, width float64
	color                    color.Color
}

// Plot implements plot.Plotter.
func (b *bars) Plot(c draw.Canvas, p *plot.Plot) {
	tx, ty := p.Transforms(&c)
	for i, v := range b.values {
		if v <= b.low {
			continue
		}
		x := float64(i) + b.offset
		lo, hi := vg.Point{X: tx(x), Y: ty(b.low)}, vg.Point{X: tx(x + b.width), Y: ty(v)}
		c.FillPolygon(b.color, c.ClipPolygonXY([]vg.Point{lo, {X: hi.X, Y: lo.Y}, hi, {X: lo.X, Y: hi.Y}}))
	}
}

// DataRange implements plot.DataRanger.
func (b *bars) DataRange() (xmin, xmax, ymin, ymax float64) {
	const margin = 0.6
	return -margin, float64(len(b.values)) - 1 + margin, b.low, b.high
}

// Thumbnail implements plot.Thumbnailer.
func (b *bars) Thumbnail(c *draw.Canvas) {
	r := c.Rectangle
	c.FillPolygon(b.color, []vg.Point{r.Min, {X: r.Max.X, Y: r.Min.Y}, r.Max, {X: r.Min.X, Y: r.Max.Y}})
}
