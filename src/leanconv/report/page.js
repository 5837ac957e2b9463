(function () {
  function draw(place) {
    var made = JSON.parse(place.querySelector('script').textContent);
    var plot = place.querySelector('.plot');
    Plotly.newPlot(plot, made.data, made.layout, {responsive: true, displayModeBar: false});
  }
  document.addEventListener('DOMContentLoaded', function () {
    var places = document.querySelectorAll('figure[data-plot]');
    function shown(place) { return place.offsetParent !== null; }
    places.forEach(function (place) { if (shown(place)) { draw(place); place.dataset.drawn = '1'; } });
    document.addEventListener('toggle', function (event) {
      if (!event.target.open) { return; }
      event.target.querySelectorAll('figure[data-plot]').forEach(function (place) {
        if (!place.dataset.drawn && shown(place)) { draw(place); place.dataset.drawn = '1'; }
      });
    }, true);
    window.drawFigures = function () {
      places.forEach(function (place) {
        if (!place.dataset.drawn && shown(place)) { draw(place); place.dataset.drawn = '1'; }
      });
    };
  });
})();
