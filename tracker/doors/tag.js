// Keeps the click id that a visitor came with in a cookie of this site, and reports sales with it:
//   <script async src="https://go.example.com/tag.js?key=KEY"></script>
//   clickdam.convert({order_id: "1042", amount: "49.90", currency: "EUR"});
// `data-parameter` names the parameter of the landing page's address that has the click id (click_id).
(function (window, document) {
  "use strict";
  var script = document.currentScript;
  var source = new URL(script.src);
  var key = source.searchParams.get("key") || "";
  var parameter = script.getAttribute("data-parameter") || "click_id";
  var cookie = "clickdam_click_id";
  var plain = /^[A-Za-z0-9._~-]{1,255}$/; // nothing that could end the cookie, or add an attribute to it
  var days30 = 2592000;

  function keep(click) {
    var secure = window.location.protocol === "https:" ? "; Secure" : "";
    document.cookie = cookie + "=" + click + "; Max-Age=" + days30 + "; Path=/; SameSite=Lax" + secure;
  }

  function kept() {
    var found = ("; " + document.cookie).split("; " + cookie + "=");
    return found.length > 1 ? found[1].split(";")[0] : "";
  }

  function convert(sale) {
    var said = new URLSearchParams({key: key});
    var click = sale.click_id || kept();
    if (click) said.set("click_id", click);
    Object.keys(sale).forEach(function (name) {
      if (name !== "click_id" && name !== "key" && sale[name] != null) said.set(name, String(sale[name]));
    });
    var image = new window.Image();
    image.referrerPolicy = "origin"; // says whose page this is, also where the page tells nobody
    image.src = source.origin + "/pixel.gif?" + said;
    return image;
  }

  var landed = new URLSearchParams(window.location.search).get(parameter);
  if (landed && plain.test(landed)) keep(landed);
  window.clickdam = {convert: convert};
})(window, document);
