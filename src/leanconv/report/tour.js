(function () {
  var root = document.getElementById('tour');
  var texts = JSON.parse(document.getElementById('texts').textContent);
  var batches = JSON.parse(document.getElementById('batches').textContent);
  var shown = 0;
  function each(selector, change) { Array.prototype.forEach.call(root.querySelectorAll(selector), change); }
  function language() { return root.dataset.lang; }
  function speak(lang) {
    root.dataset.lang = lang;
    document.documentElement.lang = lang;
    document.title = texts[lang].title;
    each('button[data-speak]', function (b) { b.setAttribute('aria-pressed', String(b.dataset.speak === lang)); });
    if (window.drawFigures) { window.drawFigures(); }
    count();
  }
  function step(number) {
    shown = (number + batches.length) % batches.length;
    var kept = batches[shown].kept;
    each('#masked [data-unit]', function (unit) {
      var at = unit.dataset.unit.split('-');
      unit.classList.toggle('off', !kept[at[0]][at[1]]);
    });
    each('#masked [data-edge]', function (edge) {
      var at = edge.dataset.edge.split('-');
      edge.classList.toggle('off', !kept[at[0]][at[1]] || !kept[+at[0] + 1][at[2]]);
    });
    var working = kept[1].concat(kept[2]);
    each('[data-batch]', function (e) { e.textContent = shown + 1; });
    each('[data-working]', function (e) { e.textContent = working.filter(Boolean).length + ' / ' + working.length; });
    each('[data-output]', function (e) {
      e.textContent = batches[shown].output.map(function (p) { return (100 * p).toFixed(1) + ' %'; }).join(', ');
    });
  }
  function whole(id) {
    var value = Number(document.getElementById(id).value);
    return Number.isInteger(value) && value >= 1 && value <= 4096 ? value : null;
  }
  function count() {
    var cin = whole('cin'), cout = whole('cout'), side = whole('side');
    var told = document.getElementById('told'), standard = document.getElementById('standard');
    var separable = document.getElementById('separable-count'), words = texts[language()];
    if (cin === null || cout === null || side === null) {
      standard.textContent = separable.textContent = '-';
      told.textContent = words.bad;
      return;
    }
    var k = side * side, dense = cin * k * cout, lean = cin * k + cin * cout;
    standard.textContent = dense.toLocaleString('en');
    separable.textContent = lean.toLocaleString('en');
    told.textContent = lean < dense ? words.wins.replace('{times}', (dense / lean).toFixed(2)) : words.loses;
  }
  each('button[data-speak]', function (b) { b.addEventListener('click', function () { speak(b.dataset.speak); }); });
  each('button[data-next]', function (b) { b.addEventListener('click', function () { step(shown + 1); }); });
  ['cin', 'cout', 'side'].forEach(function (id) { document.getElementById(id).addEventListener('input', count); });
  step(0);
  speak(language());
})();
